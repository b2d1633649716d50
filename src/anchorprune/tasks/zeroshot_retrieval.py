"""Zero-shot retrieval: images by their captions and captions by their images, with clip-benchmark's recall.

Metrics are held against clip-benchmark 1.6.2's own functions in the tests.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.errors import FieldError
from anchorprune.tasks.base import Bench, EncodeSplit, Outcomes, Task, option
from anchorprune.tasks.captions import Captions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch

TILE = 1024  # texts, and images, whose similarities are there at once: 4 MB, which a cache holds


@dataclass(frozen=True)
class ZeroShotRetrieval(Task):
    """Each caption's image among all images, and each image's captions among all captions."""

    name: ClassVar[str] = "zeroshot_retrieval"
    kinds: ClassVar[tuple[str, ...]] = ("captions",)

    recall_k: tuple[int, ...] = option((5,), "k of Recall@k", kind=int)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.recall_k or min(self.recall_k) < 1:
            raise FieldError("recall_k", self.recall_k, "give one or more numbers from 1 up")

    @property
    def primary(self) -> str:
        return f"image_retrieval_recall@{self.recall_k[0]}"

    @property
    def needs_text_tower(self) -> bool:
        return True

    def prepare(self, bench: Bench) -> Prepared:
        return Prepared(Captions(bench), self.recall_k, bench.device, bench.keep_scores)

    def meter(self, prepared: Prepared, encode_split: EncodeSplit) -> Recall:
        return Recall(prepared)


@dataclass
class Prepared:
    """The texts' features, every k, where to compute similarities, and whether each caption's hit is wanted."""

    captions: Captions
    recall_k: tuple[int, ...]
    device: torch.device
    keep_scores: bool


class Recall:
    """Recall@k of image and caption features. It keeps the features, so memory is linear in images and captions."""

    def __init__(self, prepared: Prepared) -> None:
        self.recall_k, self.device, self.keep_scores = prepared.recall_k, prepared.device, prepared.keep_scores
        self._captions = prepared.captions
        # Of each batch: which images, their features, how many captions each has, and all of these' features.
        self._kept: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self._keys: dict[int, list[str]] = {}
        self._ranks: tuple[Tensor, Tensor] | None = None

    def update(self, out: Tensor, batch: Batch) -> None:
        """Take normalised image features `[B, D]`. UserError for an image without a caption."""
        import torch

        counts = torch.tensor([len(own) for own in batch.targets])
        self._kept.append((batch.indices, out.float().cpu(), counts, self._captions.of(batch)))
        if self.keep_scores:
            for i, key, own in zip(batch.indices.tolist(), batch.keys, batch.targets, strict=True):
                self._keys[i] = [f"{key}#{j}" for j in range(len(own))]
        self._ranks = None

    def merge(self, other: Recall) -> None:
        self._kept += other._kept
        self._keys |= other._keys
        self._ranks = None

    def compute(self) -> dict[str, float]:
        """For each k: image_retrieval_recall@k, the share of captions whose image is among the k nearest to it, and
        text_retrieval_recall@k, the share of images with a caption of their own among the k nearest. 0 … 1.

        Of k images or fewer each is among the nearest k.
        """
        of_texts, of_images = self._ranked()
        metrics = {}
        for k in self.recall_k:
            metrics[f"image_retrieval_recall@{k}"] = int((of_texts < k).sum()) / len(of_texts)
            metrics[f"text_retrieval_recall@{k}"] = int((of_images < k).sum()) / len(of_images)
        return metrics

    def scores(self) -> Outcomes | None:
        """Whether each caption's image is among the first k nearest, of the first k asked for; keys are `IMAGE#0` ….

        The captions of one image share it, so that they are not independent.
        """
        import numpy as np

        if not self.keep_scores:
            return None
        keys = [self._keys[i] for i in sorted(self._keys)]
        samples = np.repeat(np.arange(len(keys)), [len(own) for own in keys])
        found = (self._ranked()[0] < self.recall_k[0]).numpy()
        return Outcomes(tuple(key for own in keys for key in own), found, {"samples": samples})

    def _ranked(self) -> tuple[Tensor, Tensor]:
        if self._ranks is None:
            images, texts, owner = (tensor.to(self.device) for tensor in self._in_order())
            of_texts, of_images = retrieval_ranks(images, texts, owner)
            self._ranks = of_texts.cpu(), of_images.cpu()
        return self._ranks

    def _in_order(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, captions, and the image of each caption, in the order of the data set, however it was dealt out."""
        import torch

        indices, counts = (torch.cat([kept[part] for kept in self._kept]) for part in (0, 2))
        place = indices.argsort().argsort()  # of each image as it came
        of_texts = place.repeat_interleave(counts)
        place_of_texts = of_texts.argsort(stable=True).argsort()
        width = self._kept[0][1].shape[1]
        images, texts = torch.empty(len(indices), width), torch.empty(len(of_texts), width)
        # One batch after the other into its place: no third copy of what may be gigabytes.
        of_images = place.split([len(kept[0]) for kept in self._kept])
        of_captions = place_of_texts.split([len(kept[3]) for kept in self._kept])
        for (_, own, _, captions), i, j in zip(self._kept, of_images, of_captions, strict=True):
            images[i], texts[j] = own, captions
        return images, texts, of_texts.sort().values


def retrieval_ranks(images: Tensor, texts: Tensor, owner: Tensor, tile: int = TILE) -> tuple[Tensor, Tensor]:
    """How many come before the right one where each text ranks all images, and each image all texts.

    By dot product, the largest first, equals by the lower index, as a stable sort of all similarities would have it;
    they are computed tile by tile, so that they are never there as a whole, nor sorted.

    Args:
        images: `[I, D]` float32.
        texts: `[T, D]` float32.
        owner: `[T]` long, the image of each text; ascending.
        tile: texts, and images, at once.

    Returns:
        long `[T]`: images before the text's own. Long `[I]`: texts before the first of the image's own; T where it
        has none.
    """
    import torch

    count = len(texts)
    index = torch.arange(count, device=texts.device)
    columns = torch.arange(len(images), device=texts.device)

    # A text's similarity to its own image has to come from the tile that it is compared in: another product of the
    # same vectors may differ in the last bit. Owners ascend, so that few tiles hold any.
    own = texts.new_zeros(count)
    for rows, cols in _tiles(count, len(images), tile):
        if owner[rows.start] < cols.stop and owner[rows.stop - 1] >= cols.start:
            inside = ((owner[rows] >= cols.start) & (owner[rows] < cols.stop)).nonzero()[:, 0]
            own[rows.start + inside] = (texts[rows] @ images[cols].T)[inside, owner[rows][inside] - cols.start]

    best = texts.new_full((len(images),), -torch.inf).scatter_reduce(0, owner, own, "amax")
    first = torch.full_like(columns, count)
    first = first.scatter_reduce(0, owner, torch.where(own == best[owner], index, count), "amin")

    of_texts, of_images = torch.zeros_like(index), torch.zeros_like(columns)
    for rows, cols in _tiles(count, len(images), tile):
        similar = texts[rows] @ images[cols].T
        of_texts[rows] += _before(similar, own[rows, None], columns[cols] < owner[rows, None], dim=1)
        of_images[cols] += _before(similar, best[cols], index[rows, None] < first[cols], dim=0)
    return of_texts, of_images.where(first < count, count)


def _tiles(rows: int, columns: int, size: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, rows, size):
        for left in range(0, columns, size):
            yield slice(top, min(top + size, rows)), slice(left, min(left + size, columns))


def _before(similar: Tensor, own: Tensor, lower: Tensor, dim: int) -> Tensor:
    """How many are nearer than the own one, or as near and of a `lower` index."""
    import torch

    # int32, into which PyTorch sums truth values twice as fast as into its default
    return ((similar > own) | ((similar == own) & lower)).sum(dim, dtype=torch.int32)
