"""Fidelity: how close pruned features stay to the unpruned ones, without labels or texts.

Search, de-duplication, clustering and filtering rest on which embeddings are near one another. So besides the cosine of
each image's two features this asks whether another view of a picture, a mirrored crop of it, still finds that picture.
"""

from __future__ import annotations

import math
import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from anchorprune.datasets.base import KINDS, Transform
from anchorprune.errors import UserError
from anchorprune.tasks.base import Bench, EncodeSplit, Outcomes, Task, option

if TYPE_CHECKING:
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch

AREA = (0.35, 0.8)  # of the picture that a crop keeps, drawn evenly
STRETCH = 4 / 3  # of its sides' ratio over the picture's, at most, either way
NEIGHBOURS = 10
ROWS = 4096  # of a matrix of similarities at once


@dataclass(frozen=True)
class Fidelity(Task):
    """Pruned features against unpruned ones, of each picture and of a mirrored crop of it."""

    name: ClassVar[str] = "fidelity"
    kinds: ClassVar[tuple[str, ...]] = tuple(kind for kind in KINDS if kind != "choices")

    view_seed: int = option(0, "draws the crops, each from this and its picture's pixels")

    @property
    def primary(self) -> str:
        return "recall@1_pruned"

    def transform(self, own: Transform) -> Transform:
        """The picture and its other view, `[2, 3, H, W]`."""
        return TwoViews(own, self.view_seed)

    def prepare(self, bench: Bench) -> Unpruned:
        return Unpruned(self, bench)

    def meter(self, prepared: Unpruned, encode_split: EncodeSplit) -> Closeness:
        return Closeness(prepared)


@dataclass(frozen=True)
class TwoViews:
    """Gives the picture and a mirrored crop of it, both through the model's own transform."""

    own: Transform
    seed: int

    def __call__(self, image: Any) -> Tensor:
        import torch

        return torch.stack([self.own(image), self.own(mirrored_crop(image, self.seed))])


def mirrored_crop(image: Any, seed: int) -> Any:
    """A crop of 35 to 80 % of the area of a Pillow image, mirrored; the same for the same seed and pixels.

    UserError for what is no Pillow image.
    """
    from PIL import Image, ImageOps

    if not isinstance(image, Image.Image):
        raise UserError("fidelity crops pictures, so data of one's own has to give Pillow images")
    # Of the pixels and not of a name or a number, so that it does not matter where in which data set a picture stands.
    draw = random.Random(f"{seed} {image.size} {zlib.crc32(image.convert('RGB').resize((16, 16)).tobytes())}")
    area, stretch = draw.uniform(*AREA), math.exp(draw.uniform(-1, 1) * math.log(STRETCH))
    share_x, share_y = min(1.0, math.sqrt(area * stretch)), min(1.0, math.sqrt(area / stretch))
    width, height = (max(1, round(side * share)) for side, share in zip(image.size, (share_x, share_y), strict=True))
    left, top = draw.randint(0, image.width - width), draw.randint(0, image.height - height)
    return ImageOps.mirror(image.crop((left, top, left + width, top + height)))


class Unpruned:
    """The unpruned features of a batch's pictures: made once for all ways of pruning."""

    def __init__(self, task: Fidelity, bench: Bench) -> None:
        from anchorprune.pruning.copies import sharing_copy

        self._task, self._bench = task, bench
        self._model = sharing_copy(bench.loaded.model)  # the model itself may be pruned already
        self._batch: Batch | None = None
        self._features: Tensor | None = None
        self.keep_scores, self.device = bench.keep_scores, bench.device

    def of(self, batch: Batch) -> Tensor:
        """`[B, D]`, normalised float32, on the CPU."""
        if self._features is None or batch is not self._batch:
            assert batch.images is not None
            weights = next(self._model.parameters())
            images = batch.images[:, 0].to(self._bench.device)
            with self._bench.autocast():
                self._features = self._task.forward(self._model, images.to(weights.dtype)).cpu()
            self._batch = batch
        return self._features


class Closeness:
    """Pruned features beside unpruned ones. It keeps them, so memory is linear in the images."""

    def __init__(self, prepared: Unpruned) -> None:
        self._unpruned, self._keep_scores, self._device = prepared, prepared.keep_scores, prepared.device
        # Of each batch: which images, pruned features of both views, unpruned ones of the pictures.
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []
        self._keys: dict[int, str] = {}

    def update(self, out: Tensor, batch: Batch) -> None:
        """Take normalised features `[B, 2, D]` of the pictures and of their other views."""
        self._kept.append((batch.indices, out.float().cpu(), self._unpruned.of(batch)))
        if self._keep_scores:
            self._keys.update(zip(batch.indices.tolist(), batch.keys, strict=True))

    def merge(self, other: Closeness) -> None:
        self._kept += other._kept
        self._keys |= other._keys

    def compute(self) -> dict[str, float]:
        """
        cosine, cosine_p5: of a picture's pruned to its unpruned feature, the mean and the 5th percentile.
        recall@1, recall@5: share of views whose own picture is the nearest (or among the five) of all unpruned ones.
        recall@1_pruned: the same with pictures pruned as well.
        neighbours@10: share of each picture's ten nearest unpruned neighbours that are among its ten nearest when all
        are pruned; NaN for ten pictures or fewer.
        """
        import torch

        pruned, views, unpruned = self._in_order()
        cosine = (pruned * unpruned).sum(dim=1).double()
        before = nearer(views, unpruned)
        return {
            "cosine": float(cosine.mean()),
            "cosine_p5": float(torch.quantile(cosine, 0.05)),
            "recall@1": float((before < 1).double().mean()),
            "recall@5": float((before < 5).double().mean()),
            "recall@1_pruned": float((nearer(views, pruned) < 1).double().mean()),
            "neighbours@10": shared_neighbours(pruned, unpruned),
        }

    def scores(self) -> Outcomes | None:
        """Whether each view's own picture is the nearest, both pruned."""
        if not self._keep_scores:
            return None
        pruned, views, _ = self._in_order()
        found = (nearer(views, pruned) < 1).cpu().numpy()
        return Outcomes(tuple(self._keys[i] for i in sorted(self._keys)), found)

    def _in_order(self) -> tuple[Tensor, Tensor, Tensor]:
        """Pruned features, those of the other views, unpruned ones, in the data set's order."""
        import torch

        indices, both, unpruned = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
        order = indices.argsort()
        both = both[order].to(self._device)
        return both[:, 0], both[:, 1], unpruned[order].to(self._device)


def nearer(queries: Tensor, gallery: Tensor) -> Tensor:
    """How many others are at least as near to each query as its own, by dot product: long `[N]`.

    Args:
        queries, gallery: `[N, D]`; the i-th query's own is the i-th of the gallery. Equals count against it, so that
            features that are all the same find nothing.
    """
    import torch

    counts = []
    for first in range(0, len(queries), ROWS):
        similar = queries[first : first + ROWS] @ gallery.T
        own = similar.diagonal(first)[:, None]
        counts.append((similar >= own).sum(dim=1) - 1)
    return torch.cat(counts)


def shared_neighbours(a: Tensor, b: Tensor, count: int = NEIGHBOURS) -> float:
    """Mean share of the `count` nearest neighbours in `a [N, D]`, itself left out, that are so in `b [N, D]`."""
    if len(a) <= count:
        return math.nan
    shared = 0
    for first in range(0, len(a), ROWS):
        both = []
        for features in (a, b):
            similar = features[first : first + ROWS] @ features.T
            similar.diagonal(first).fill_(-math.inf)
            both.append(similar.topk(count, dim=1).indices)
        shared += int((both[0][:, :, None] == both[1][:, None, :]).sum())
    return shared / (count * len(a))
