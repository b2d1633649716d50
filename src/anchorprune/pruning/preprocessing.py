"""A model's own preprocessing, resizing straight to the size of a coarser grid: one resampling instead of two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anchorprune.errors import UserError

Size = tuple[int, int]  # height and width in pixels
Preprocess = Callable[[Any], Tensor]  # PIL image -> [3, height, width]


@dataclass(frozen=True)
class ResizeStraight:
    """PIL image -> PIL image of `size`: what resizing and cropping its centre would show, resampled once.

    Attributes:
        resized: what the image would be resized to: its shorter side, or height and width.
        crop: height and width of the centre that would be cropped then.
        size: height and width of what comes out.
        resample: PIL's number of the filter, antialiased.
    """

    resized: int | Size
    crop: Size
    size: Size
    resample: int

    def __call__(self, image: Any) -> Any:
        width, height = image.size
        if isinstance(self.resized, int):
            short, long = min(width, height), max(width, height)
            other = int(self.resized * long / short)  # rounded as torchvision does
            rows, columns = (other, self.resized) if width <= height else (self.resized, other)
        else:
            rows, columns = self.resized
        top, left = round((rows - self.crop[0]) / 2.0), round((columns - self.crop[1]) / 2.0)
        down, across = height / rows, width / columns
        box = (
            left * across,
            top * down,
            min(width, (left + self.crop[1]) * across),
            min(height, (top + self.crop[0]) * down),
        )
        return image.resize(self.size[::-1], self.resample, box=box)


@dataclass(frozen=True)
class Steps:
    """Steps one after the other, as torchvision's Compose has them."""

    steps: tuple[Callable[[Any], Any], ...]

    def __call__(self, image: Any) -> Any:
        for step in self.steps:
            image = step(image)
        return image


def resized_straight(preprocess: Preprocess, old: Size, new: Size) -> Preprocess:
    """The same preprocessing for images of another size than the tower's own.

    Args:
        preprocess: torchvision's or timm's steps, or one that has the method `resized(change)`, which gives it anew
            with another `ResizeStraight` in place of its resizing and cropping.
        old, new: height and width in pixels.

    Raises:
        UserError: steps whose resizing cannot be told apart, or that make no image of `old`.
    """

    def change(resized: int | Size, crop: Size | None, resample: int) -> ResizeStraight:
        if crop is None:
            crop = (resized, resized) if isinstance(resized, int) else resized
        least = (resized, resized) if isinstance(resized, int) else resized
        if crop != old or least[0] < crop[0] or least[1] < crop[1]:
            raise UserError(
                f"transform: this preprocessing makes images of {crop[0]} × {crop[1]} pixels, and the tower takes "
                f"{old[0]} × {old[1]}; give the model's own"
            )
        return ResizeStraight(resized, crop, new, resample)

    if (own := getattr(preprocess, "resized", None)) is not None:
        made: Preprocess = own(change)
        return made
    steps: list[Any] = list(getattr(preprocess, "transforms", None) or [])
    kinds = [type(step).__name__ for step in steps]
    if kinds.count("Resize") != 1 or kinds[0] != "Resize" or getattr(steps[0], "max_size", None) is not None:
        named = ", ".join(kinds) or type(preprocess).__name__
        raise UserError(
            f"transform: cannot tell the resizing of this preprocessing apart ({named}); it must begin with "
            "torchvision's Resize"
        )
    rest = 2 if kinds[1:2] == ["CenterCrop"] else 1
    crop = _pair(steps[1].size) if rest == 2 else None
    size = steps[0].size
    resized = size if isinstance(size, int) else int(size[0]) if len(size) == 1 else _pair(size)
    return Steps((change(resized, crop, _filter(steps[0].interpolation)), *steps[rest:]))


def mean_and_std(preprocess: Any) -> tuple[list[float], list[float]] | None:
    """What images are normalised with; None where the preprocessing does not say."""
    if (own := getattr(preprocess, "mean_and_std", None)) is not None:
        found: tuple[list[float], list[float]] = own
        return found
    for step in getattr(preprocess, "transforms", None) or getattr(preprocess, "steps", None) or ():
        if type(step).__name__ == "Normalize":
            return [float(value) for value in step.mean], [float(value) for value in step.std]
    return None


def _pair(size: Any) -> Size:
    height, width = size if isinstance(size, Sequence) else (size, size)
    return int(height), int(width)


def _filter(interpolation: Any) -> int:
    """PIL's number of a filter that torchvision has by name."""
    from PIL import Image

    return int(Image.Resampling[interpolation.name])
