"""`bundled`: the photographs that come with anchorprune, for its demonstration model."""

from __future__ import annotations

from typing import ClassVar

from anchorprune import bundled
from anchorprune.datasets.base import DataSpec, EvalDataset, Source, Transform
from anchorprune.datasets.wds import open_wds
from anchorprune.errors import FieldError


class Bundled(Source):
    """The bundled photographs, with their class names and templates; their one split is `test`."""

    name: ClassVar[str] = "bundled"

    @classmethod
    def claims(cls, name: str) -> bool:
        return name == cls.name

    @classmethod
    def open(cls, spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
        if not bundled.PHOTOS.is_dir():
            raise FieldError("dataset", bundled.TAG, f"the folder {bundled.PHOTOS} is missing from this installation")
        return open_wds(bundled.TAG, root=str(bundled.PHOTOS), split=spec.split, transform=transform, cache_dir=None)
