"""Items whose images are files, or parts of files: their bytes can be had as they are kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from anchorprune.datasets.base import Transform
from anchorprune.datasets.images import decode, transformed


class EncodedItems(ABC):
    """`items[i] -> (transform(image), target)`, decoded on demand. What copies a data set takes `read` and `target`."""

    transform: Transform

    @abstractmethod
    def read(self, index: int) -> bytes:
        """The image as it is kept. Raises BadImage where it cannot be read."""

    @abstractmethod
    def target(self, index: int) -> Any:
        """What `EvalDataset.kind` says."""

    @abstractmethod
    def source(self, index: int) -> str:
        """What a message calls it: a file, or a tar and key."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        source = self.source(index)
        return transformed(self.transform, decode(self.read(index), source), source), self.target(index)
