"""Tensors beside a result, such as a classifier or the attention of a few images."""

from __future__ import annotations

import errno
from typing import Any

import torch

from anchorprune.files import StrPath, replacing


def save_tensors(content: Any, path: StrPath) -> None:
    """Write tensors, or a dict of them, whole or not at all; `torch.load(path, weights_only=True)` reads it.

    Raises:
        Unwritten: it cannot be written.
    """
    with replacing(path) as temporary:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(errno.EIO, "torch could not write it: is the disk full?") from error
