"""The image towers. Each file of this folder knows one model library: what it can prune, and why not the rest."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from typing import Any

import torch
from torch import nn

from anchorprune.errors import UserError
from anchorprune.towers.base import Tower

__all__ = ["Tower", "find_tower", "library", "skeleton"]

# What --model_type calls the files of this folder that can load models.
LIBRARIES = {"open_clip": "open_clip", "hf": "huggingface", "timm": "timm"}


def library(model_type: str) -> Any:
    """The file of this folder with `check` and `load`, and but for timm `skeleton`, for this `--model_type`."""
    return importlib.import_module(f"{__name__}.{LIBRARIES[model_type]}")


@functools.lru_cache(maxsize=1)
def skeleton(model_type: str, model: str) -> nn.Module | None:
    """A model without weights, to look at its tower before it is loaded; None where that cannot be had.

    The last one is kept. Leave it as it is.
    """
    built: nn.Module | None = library(model_type).skeleton(model)
    return built


def find_tower(model: nn.Module) -> Tower:
    """The image tower of `model`: a CLIP-like model, its image tower alone, or either one compiled.

    Raises:
        UserError: the model cannot be pruned; the sentence says why.
    """
    if isinstance(model, nn.DataParallel):
        raise UserError(
            "cannot prune nn.DataParallel: its replicas would share one record of the kept tokens; "
            "prune the model inside each process of DistributedDataParallel instead"
        )
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    # What `clip.load(…, jit=True)` gives, alone or in a model of the user's own.
    if isinstance(getattr(model, "visual", model), torch.jit.ScriptModule):
        raise UserError("cannot prune a TorchScript model: its blocks take no hooks; load it with jit=False")
    for name in sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "base"):
        tower = importlib.import_module(f"{__name__}.{name}").match(model)
        if tower is not None:
            return tower
    raise UserError(
        f"cannot prune {type(model).__name__}: it is no image tower that anchorprune knows "
        "(a vision transformer of open_clip, OpenAI's clip, transformers or timm, or a model around one)"
    )
