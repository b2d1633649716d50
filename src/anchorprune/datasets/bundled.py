"""`bundled`: the photographs that come with anchorprune, for its demonstration model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anchorprune import demo
from anchorprune.datasets import EvalDataset
from anchorprune.datasets.wds import open_wds
from anchorprune.errors import UserError


def open_bundled(*, split: str, transform: Callable[[Any], Any]) -> EvalDataset:
    """The bundled photographs, with their class names and templates.

    Raises:
        UserError: they are missing from this installation, or the split is not `test`, which is all there is.
    """
    if not demo.PHOTOS.is_dir():
        raise UserError(f"--dataset {demo.TAG}: the folder {demo.PHOTOS} is missing from this installation")
    return open_wds(demo.TAG, root=str(demo.PHOTOS), split=split, transform=transform, cache_dir=None)
