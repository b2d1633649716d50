"""Image-caption selection: which of a few captions is an image's, and which of a few images a caption's.

The scores of Winoground (T. Thrush et al., CVPR 2022), whose text, image and group score are text_acc, image_acc and
acc here, and of SugarCrepe (C.-Y. Hsieh et al., NeurIPS 2023), where one image has two captions and text_acc counts.
Metrics are held against clip-benchmark 1.6.2's own functions in the tests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from anchorprune.errors import FieldError
from anchorprune.tasks.base import Bench, EncodeSplit, Outcomes, Task
from anchorprune.tasks.captions import Captions

if TYPE_CHECKING:
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch


@dataclass(frozen=True)
class ImageCaptionSelection(Task):
    """The right caption for each image of a sample, and the right image for each caption."""

    name: ClassVar[str] = "image_caption_selection"
    kinds: ClassVar[tuple[str, ...]] = ("choices",)

    @property
    def primary(self) -> str:
        return "acc"

    def forward(self, model: Any, images: Tensor) -> Tensor:
        """Features `[B, n, D]` of `[B, n, 3, H, W]`, or of `[B, 3, H, W]` with n = 1."""
        return super().forward(model, images if images.dim() == 5 else images[:, None])

    @property
    def needs_text_tower(self) -> bool:
        return True

    def prepare(self, bench: Bench) -> Prepared:
        return Prepared(Captions(bench), bench.dataset.name)

    def meter(self, prepared: Prepared, encode_split: EncodeSplit) -> Selection:
        return Selection(prepared)


@dataclass
class Prepared:
    """The texts' features, and what the data set is called."""

    captions: Captions
    dataset: str


class Selection:
    """Which samples were right, image by image and caption by caption."""

    def __init__(self, prepared: Prepared) -> None:
        self._captions, self._dataset = prepared.captions, prepared.dataset
        self._right: dict[int, tuple[str, bool, bool]] = {}  # key, images given their texts, texts their images

    def update(self, out: Tensor, batch: Batch) -> None:
        """Take normalised features `[B, n, D]`. UserError for a sample in which there is nothing to choose."""
        texts_of = self._captions.of(batch).split(list(map(len, batch.targets)))
        for i, key, images, texts in zip(batch.indices.tolist(), batch.keys, out.float().cpu(), texts_of, strict=True):
            if len(images) == len(texts) == 1:
                raise FieldError("dataset", self._dataset, f"sample {key} has one text and one image, so no choice")
            # Not as a matrix product, in which equal texts may come out unequal in the last bit.
            similar = (images[:, None] * texts).sum(dim=-1)
            self._right[i] = key, all_right(similar), all_right(similar.T)

    def merge(self, other: Selection) -> None:
        self._right |= other._right

    def compute(self) -> dict[str, float]:
        """Shares of samples: image_acc, all texts have their own image as the nearest of the sample's; text_acc, all
        images their own text; acc, both."""
        samples = self._right.values()
        right = {
            "image_acc": sum(image for _, _, image in samples),
            "text_acc": sum(text for _, text, _ in samples),
            "acc": sum(text and image for _, text, image in samples),
        }
        return {name: count / len(samples) for name, count in right.items()}

    def scores(self) -> Outcomes:
        """Whether each sample is right both ways."""
        import numpy as np

        samples = [self._right[i] for i in sorted(self._right)]
        return Outcomes(tuple(key for key, _, _ in samples), np.array([text and image for _, text, image in samples]))


def all_right(similar: Tensor) -> bool:
    """Whether the i-th of each row is its largest, alone, for as many rows as there are columns to be right.

    Args:
        similar: `[rows, columns]`; of a sample with more rows than columns the first ones count.
    """
    count = min(similar.shape)
    own = similar.diagonal()[:, None]
    return bool(((similar[:count] >= own).sum(dim=1) == 1).all())
