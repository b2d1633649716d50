"""What a model computes with, as a digest: its weights, its modules and their settings, not what it is called."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch


def add_model(digest: Any, model: Any, wanted: Callable[[str], bool] = lambda name: True) -> None:
    """Feed a hashlib object with a module's parts and tensors whose dotted names are wanted (0.6 s a GB)."""
    for name, part in model.named_modules():
        if wanted(name):
            plain = {k: v for k, v in vars(part).items() if isinstance(v, (bool, int, float, str)) and k != "training"}
            config: Any = getattr(part, "config", None)
            own = config.to_json_string() if hasattr(config, "to_json_string") else ""  # transformers
            digest.update(f"{name} {type(part).__name__} {sorted(plain.items())} {own}".encode())
    tensors = {**model.state_dict(), **dict(model.named_buffers())}  # with those that are not saved, as masks are
    for name, tensor in sorted(tensors.items()):
        if wanted(name):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)


def described(thing: Any) -> str:
    """How an object shows itself, without where it lies in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(thing))
