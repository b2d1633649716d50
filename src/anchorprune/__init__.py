"""anchorprune: fewer visual tokens in CLIP image encoders, without training, and honest numbers on what it costs.

import anchorprune

with anchorprune.prune(model, "anchor", k_anchors=10, top_m=50) as pruning:
    features = model.encode_image(images)
print(pruning.tokens_before, pruning.tokens_after, pruning.kept[0])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anchorprune.attention import get_vision_attention
    from anchorprune.errors import UserError
    from anchorprune.pruning import Pruning, apply_pruning_to_model, prune, restore
    from anchorprune.strategies import RECOMMENDED
    from anchorprune.strategies.anchor import select_tokens_by_pruning

__version__ = "0.1.0"

# Imported on first use (PEP 562): `anchorprune --help` must not wait for torch.
_HOME = {
    "Pruning": "anchorprune.pruning",
    "RECOMMENDED": "anchorprune.strategies",
    "UserError": "anchorprune.errors",
    "apply_pruning_to_model": "anchorprune.pruning",
    "get_vision_attention": "anchorprune.attention",
    "prune": "anchorprune.pruning",
    "restore": "anchorprune.pruning",
    "select_tokens_by_pruning": "anchorprune.strategies.anchor",
}

__all__ = [
    "RECOMMENDED",
    "Pruning",
    "UserError",
    "__version__",
    "apply_pruning_to_model",
    "get_vision_attention",
    "prune",
    "restore",
    "select_tokens_by_pruning",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
