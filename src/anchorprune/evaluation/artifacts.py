"""Tensors beside a result, such as a classifier or the attention of a few images."""

from __future__ import annotations

from typing import Any

import torch

from anchorprune.files import StrPath, writing


def save_tensors(content: Any, path: StrPath) -> None:
    """Write tensors, or a dict of them, whole or not at all; `torch.load(path, weights_only=True)` reads it.

    Raises:
        Unwritten: it cannot be written.
    """
    with writing(path) as file:
        torch.save(content, file)
