"""anchorprune: fewer visual tokens in CLIP image encoders, without training, and honest numbers on what it costs.

import anchorprune

with anchorprune.prune(model, anchorprune.Coarse(keep_patches=51)) as pruning:
    features = model.encode_image(images)
print(pruning.tokens_before, pruning.tokens_after, pruning.kept[0])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchorprune.datasets.own import OwnDataset
    from anchorprune.embeddings.request import EncodeRequest
    from anchorprune.embeddings.run import encode
    from anchorprune.errors import UserError
    from anchorprune.evaluation.engine import evaluate
    from anchorprune.evaluation.merging import merge
    from anchorprune.evaluation.request import Compute, DataSpec, ModelSpec, Request
    from anchorprune.evaluation.result import Result
    from anchorprune.models.base import LoadedModel
    from anchorprune.pruning.attention import get_vision_attention
    from anchorprune.pruning.injection import Pruning, apply_pruning_to_model, prune, restore
    from anchorprune.strategies import RECOMMENDED
    from anchorprune.strategies.anchor import Anchor, select_tokens_by_pruning
    from anchorprune.strategies.base import Strategy
    from anchorprune.strategies.cascade import Cascade
    from anchorprune.strategies.cls_attention import ClsAttention
    from anchorprune.strategies.coarse import Coarse
    from anchorprune.strategies.evit import Evit
    from anchorprune.strategies.max_min import MaxMin
    from anchorprune.strategies.pitome import Pitome
    from anchorprune.strategies.random import Random
    from anchorprune.strategies.rapid_like import RapidLike
    from anchorprune.strategies.thin import Thin
    from anchorprune.strategies.tofu import Tofu
    from anchorprune.strategies.token_transforming import TokenTransforming
    from anchorprune.strategies.tome import Tome
    from anchorprune.strategies.vwt_intra import VwtIntra
    from anchorprune.strategies.zero_tprune import ZeroTPrune
    from anchorprune.studies.compare import compare
    from anchorprune.studies.export import export
    from anchorprune.studies.speed import speed
    from anchorprune.studies.sweep import sweep
    from anchorprune.studies.tune import tune
    from anchorprune.tasks.base import Outcomes, Task
    from anchorprune.tasks.linear_probe import LinearProbe
    from anchorprune.tasks.zeroshot_classification import ZeroShotClassification
    from anchorprune.tokens import TokenPlan, Tokens

__version__ = "0.2.0"

# Imported on first use (PEP 562): `anchorprune --help` must not wait for torch, nor `prune` for data sets and pages.
_HOME = {
    "Anchor": "anchorprune.strategies.anchor",
    "Calibrated": "anchorprune.strategies.calibrated",
    "Cascade": "anchorprune.strategies.cascade",
    "ClsAttention": "anchorprune.strategies.cls_attention",
    "Coarse": "anchorprune.strategies.coarse",
    "Compute": "anchorprune.evaluation.request",
    "DataSpec": "anchorprune.evaluation.request",
    "EncodeRequest": "anchorprune.embeddings.request",
    "Evit": "anchorprune.strategies.evit",
    "LinearProbe": "anchorprune.tasks.linear_probe",
    "LoadedModel": "anchorprune.models.base",
    "MaxMin": "anchorprune.strategies.max_min",
    "ModelSpec": "anchorprune.evaluation.request",
    "Outcomes": "anchorprune.tasks.base",
    "OwnDataset": "anchorprune.datasets.own",
    "Pitome": "anchorprune.strategies.pitome",
    "Pruning": "anchorprune.pruning.injection",
    "RECOMMENDED": "anchorprune.strategies",
    "Random": "anchorprune.strategies.random",
    "RapidLike": "anchorprune.strategies.rapid_like",
    "Request": "anchorprune.evaluation.request",
    "Result": "anchorprune.evaluation.result",
    "Strategy": "anchorprune.strategies.base",
    "Task": "anchorprune.tasks.base",
    "Thin": "anchorprune.strategies.thin",
    "Tofu": "anchorprune.strategies.tofu",
    "TokenPlan": "anchorprune.tokens",
    "TokenTransforming": "anchorprune.strategies.token_transforming",
    "Tokens": "anchorprune.tokens",
    "Tome": "anchorprune.strategies.tome",
    "UserError": "anchorprune.errors",
    "VwtIntra": "anchorprune.strategies.vwt_intra",
    "ZeroShotClassification": "anchorprune.tasks.zeroshot_classification",
    "ZeroTPrune": "anchorprune.strategies.zero_tprune",
    "apply_pruning_to_model": "anchorprune.pruning.injection",
    "calibrate": "anchorprune.studies.calibrate",
    "compare": "anchorprune.studies.compare",
    "encode": "anchorprune.embeddings.run",
    "evaluate": "anchorprune.evaluation.engine",
    "export": "anchorprune.studies.export",
    "get_vision_attention": "anchorprune.pruning.attention",
    "merge": "anchorprune.evaluation.merging",
    "prune": "anchorprune.pruning.injection",
    "restore": "anchorprune.pruning.injection",
    "select_tokens_by_pruning": "anchorprune.strategies.anchor",
    "speed": "anchorprune.studies.speed",
    "sweep": "anchorprune.studies.sweep",
    "tune": "anchorprune.studies.tune",
}

__all__ = [
    "RECOMMENDED",
    "Anchor",
    "Calibrated",
    "Cascade",
    "ClsAttention",
    "Coarse",
    "Compute",
    "DataSpec",
    "EncodeRequest",
    "Evit",
    "LinearProbe",
    "LoadedModel",
    "MaxMin",
    "ModelSpec",
    "Outcomes",
    "OwnDataset",
    "Pitome",
    "Pruning",
    "Random",
    "RapidLike",
    "Request",
    "Result",
    "Strategy",
    "Task",
    "Thin",
    "Tofu",
    "TokenPlan",
    "TokenTransforming",
    "Tokens",
    "Tome",
    "UserError",
    "VwtIntra",
    "ZeroShotClassification",
    "ZeroTPrune",
    "__version__",
    "apply_pruning_to_model",
    "calibrate",
    "compare",
    "encode",
    "evaluate",
    "export",
    "get_vision_attention",
    "merge",
    "prune",
    "restore",
    "select_tokens_by_pruning",
    "speed",
    "sweep",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
