"""What single-label classification counts, batch by batch, whatever made the logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anchorprune.tasks.base import Outcomes

if TYPE_CHECKING:
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch


class ClassCounts:
    """How often the best class was right, and one of the best five.

    What it holds does not grow with the images, unless each one's class is kept.
    """

    def __init__(self, classes: int, keep_scores: bool = False, keys: Sequence[str] | None = None) -> None:
        """
        Args:
            classes: that can be given; an image of another one counts as wrong.
            keep_scores: for `scores`; about 20 bytes an image then.
            keys: of all samples of the data set, which has them anyway; None: those of the batches are kept.
        """
        import torch

        self.classes, self.keep_scores = classes, keep_scores
        self._hits5 = 0
        self._seen = torch.zeros(classes, dtype=torch.long)  # images of each class
        self._recalled = torch.zeros_like(self._seen)  # and those of them that were given it
        # Of each batch: which samples, their classes, and the best one for each.
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._keys: Sequence[str] | dict[int, str] = {} if keys is None else keys

    def update(self, logits: Tensor, batch: Batch) -> None:
        """Take logits `[B, classes]` of a batch."""
        targets = batch.targets.cpu()
        best = logits.topk(min(5, self.classes), dim=1).indices.cpu()
        predictions = best[:, 0]
        self._hits5 += int((best == targets[:, None]).sum())
        self._seen = _sum(self._seen, targets.bincount())
        self._recalled = _sum(self._recalled, targets[predictions == targets].bincount())
        if self.keep_scores:
            # In copies: a view of the five best would keep all of them.
            self._kept.append((batch.indices.int(), targets.int(), predictions.int()))
            if isinstance(self._keys, dict):
                self._keys.update(zip(batch.indices.tolist(), batch.keys, strict=True))

    def merge(self, other: ClassCounts) -> None:
        """Take what another one counted of other samples."""
        self._hits5 += other._hits5
        self._seen = _sum(self._seen, other._seen)
        self._recalled = _sum(self._recalled, other._recalled)
        self._kept += other._kept
        if isinstance(self._keys, dict):
            self._keys = {**self._keys, **other._keys} if isinstance(other._keys, dict) else other._keys

    def compute(self) -> dict[str, float]:
        """acc1, acc5 (NaN below 5 classes), mean_per_class_recall (over the classes that occur), 0 … 1."""
        images, occurs = int(self._seen.sum()), self._seen > 0
        recalled = _sum(self._recalled, self._seen.new_zeros(len(self._seen)))
        return {
            "acc1": int(recalled.sum()) / images,
            "acc5": self._hits5 / images if self.classes >= 5 else float("nan"),
            "mean_per_class_recall": float((recalled[occurs].double() / self._seen[occurs]).mean()),
        }

    def scores(self) -> Outcomes | None:
        """Whether each image was recognised, with its class and the one it was given."""
        if not self.keep_scores:
            return None
        import torch

        indices, targets, predictions = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        order = indices.argsort()
        keys = tuple(self._keys[i] for i in indices[order].tolist())
        return Outcomes.of_classes(keys, targets[order].numpy(), predictions[order].numpy())

    def __getstate__(self) -> dict[str, Any]:
        """Of the keys those of its own samples alone travel to another process."""
        seen = {i for indices, _, _ in self._kept for i in indices.tolist()}
        return {**self.__dict__, "_keys": {i: self._keys[i] for i in seen}}


def _sum(a: Tensor, b: Tensor) -> Tensor:
    """Of two counts by class, the shorter one filled up."""
    from torch.nn import functional as F

    length = max(len(a), len(b))
    return F.pad(a, (0, length - len(a))) + F.pad(b, (0, length - len(b)))
