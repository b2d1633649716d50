"""Whole CLIP-like models by their names: each file of this folder knows one library's way to find and load them.

A file has `check(model, pretrained, cache_dir, trust)`, which raises UserError for what can be known to be wrong before
anything is loaded; `skeleton(model)`, the model without weights or None; `has_text_tower(model)` of one that was
checked; and `load(…) -> LoadedModel`.
"""

from __future__ import annotations

import functools
import importlib
import os
from typing import TYPE_CHECKING, Any

from anchorprune.errors import FieldError
from anchorprune.models.base import LoadedModel, ModelSpec
from anchorprune.reading import check_archive, reason

if TYPE_CHECKING:
    import torch
    from torch import nn

# By what `--model_type` calls them.
LIBRARIES = {"open_clip": "open_clip", "hf": "huggingface", "timm": "timm"}


def library(model_type: str) -> Any:
    """The file of this folder for this `--model_type`. FieldError for another."""
    if model_type not in LIBRARIES:
        raise FieldError("model_type", model_type, f"choose one of {', '.join(LIBRARIES)}")
    return importlib.import_module(f"{__name__}.{LIBRARIES[model_type]}")


def check(spec: ModelSpec) -> None:
    """Raise UserError for what can be known to be wrong with a model before anything is loaded."""
    library(spec.library).check(spec.name, spec.pretrained, spec.cache_dir, spec.trust_remote_code)


def has_text_tower(spec: ModelSpec) -> bool:
    """Of a model that was checked."""
    has: bool = library(spec.library).has_text_tower(spec.name)
    return has


@functools.lru_cache(maxsize=1)
def skeleton(model_type: str, model: str) -> nn.Module | None:
    """A model without weights, to look at its tower before it is loaded; None where that cannot be had.

    The last one is kept. Leave it as it is.
    """
    built: nn.Module | None = library(model_type).skeleton(model)
    return built


def load(spec: ModelSpec, device: torch.device, precision: str, seed: int = 0) -> LoadedModel:
    """The model that `spec` names, in evaluation mode on `device`.

    Args:
        precision: of the weights, by open_clip's name: fp32, bf16, fp16.
        seed: of random weights, where none are named.

    Raises:
        UserError: an unknown model or weights that cannot be had; the sentence says why.
    """
    import torch

    from anchorprune.models.checkpoint import not_finite, not_real, refuse_complex

    weights = _weights_of(spec)
    for file, name in weights.items():
        try:
            check_archive(file)
        except FileNotFoundError:  # a link in the model's folder, to be missed by whoever needs it
            continue
        except (OSError, ValueError) as error:
            raise FieldError(name, file, f"holds no weights ({reason(error)})") from error
        refuse_complex(file)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        loaded: LoadedModel = library(spec.library).load(
            spec.name,
            spec.pretrained,
            cache_dir=spec.cache_dir,
            device=device,
            precision=precision,
            trust=spec.trust_remote_code,
        )
    loaded.spec = spec
    for file, name in weights.items():
        if (odd := not_real(file, loaded.model)) is not None:
            raise FieldError(name, file, f"holds weights that are no real numbers: {odd}; give weights that are whole")
    if found := not_finite(loaded.model):
        fix = f"numbers that are not finite: its {found}; give weights that are whole"
        fix += ", or fp32: fp16 may be what they overflow in" if precision == "fp16" else ""
        raise FieldError("pretrained" if spec.pretrained else "model", spec.pretrained or spec.name, fix)
    return loaded


def _weights_of(spec: ModelSpec) -> dict[str, str]:
    """The checkpoint files that the model is read from, as far as they are named or lie in a folder of its own.

    With the field of `spec` that each is named by.
    """
    folder = spec.name.removeprefix("local-dir:")
    if spec.pretrained and os.path.isfile(spec.pretrained):
        return {spec.pretrained: "pretrained"}
    names = os.listdir(folder) if os.path.isdir(folder) else []
    weights = [name for name in sorted(names) if name.endswith((".safetensors", ".bin", ".pt"))]
    return {os.path.join(folder, name): "model" for name in weights}
