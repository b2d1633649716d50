"""Photographs in the webdataset layout, and the augmented batches that the demo tower is trained on."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MEAN = (0.48145466, 0.4578275, 0.40821073)  # open_clip's default, OpenAI's
STD = (0.26862954, 0.26130258, 0.27577711)
SHORT, LONG = 128, 192  # pixels kept of each training photograph: short side, and at most so much of the long one


@dataclass(frozen=True)
class Photo:
    """One photograph: its JPEG bytes and the index of its class."""

    jpeg: bytes
    label: int

    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(self.jpeg), formats=["JPEG"]).convert("RGB")


def read_split(root: Path, split: str) -> list[Photo]:
    """All photographs of `root/split/*.tar`, in the order of the shards and of the names in them."""
    photos = []
    for shard in range(int((root / split / "nshards.txt").read_text())):
        with tarfile.open(root / split / f"{shard}.tar") as tar:
            members = {m.name: m for m in tar.getmembers()}
            content = {name: file.read() for name, m in members.items() if (file := tar.extractfile(m))}
        for name in sorted(content):
            if name.endswith(".jpg"):
                photos.append(Photo(content[name], int(content[name.removesuffix("jpg") + "cls"])))
    return photos


def read_classnames(root: Path) -> list[str]:
    return (root / "classnames.txt").read_text().splitlines()


def choose_classes(photos: list[Photo], count: int, excluded: frozenset[int]) -> list[int]:
    """The `count` classes with most photographs, in the order of their old indices."""
    sizes: dict[int, int] = {}
    for photo in photos:
        sizes[photo.label] = sizes.get(photo.label, 0) + 1
    ranked = sorted((label for label in sizes if label not in excluded), key=lambda label: (-sizes[label], label))
    return sorted(ranked[:count])


def keep_classes(photos: list[Photo], classes: list[int], at_most: int) -> list[Photo]:
    """The first `at_most` photographs of each of `classes`, relabelled 0 … len(classes) − 1."""
    kept: list[Photo] = []
    seen = dict.fromkeys(classes, 0)
    for photo in photos:
        if photo.label in seen and seen[photo.label] < at_most:
            seen[photo.label] += 1
            kept.append(Photo(photo.jpeg, classes.index(photo.label)))
    return kept


def validation_indices(labels: Tensor, every: int = 12) -> Tensor:
    """Every 12th photograph of each class (the 6th, the 18th, …): never trained on, used to choose the recipe."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        chosen[(labels == label).nonzero().flatten()[every // 2 :: every]] = True
    return chosen.nonzero().flatten()


class Augmenter:
    """Random resized crops, flips and colour jitter of photographs held in memory, a batch at a time."""

    def __init__(self, photos: list[Photo], size: int, generator: torch.Generator) -> None:
        self.size, self.generator = size, generator
        self.pixels = torch.zeros(len(photos), 3, LONG, LONG, dtype=torch.uint8)
        self.extent = torch.empty(len(photos), 2)  # width, height in pixels
        for i, photo in enumerate(photos):
            image = photo.image()
            scale = SHORT / min(image.size)
            width, height = (max(SHORT, round(side * scale)) for side in image.size)
            image = image.resize((width, height), Image.Resampling.BICUBIC)
            left, top = max(0, (width - LONG) // 2), max(0, (height - LONG) // 2)
            width, height = min(width, LONG), min(height, LONG)
            image = image.crop((left, top, left + width, top + height))
            array = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)
            self.pixels[i, :, :height, :width] = array.permute(2, 0, 1)
            self.extent[i] = torch.tensor([width, height])

    def _uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self.generator) * (high - low) + low

    def batch(self, index: Tensor, least_area: float = 0.4) -> Tensor:
        """Normalised `[batch, 3, size, size]` crops that cover at least `least_area` of their photographs."""
        n, extent = len(index), self.extent[index]
        area = extent.prod(1) * self._uniform(least_area, 1.0, n)
        ratio = self._uniform(-0.29, 0.29, n).exp()  # width : height, from 3:4 to 4:3
        crop = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], 1).minimum(extent)
        corner = (extent - crop) * self._uniform(0, 1, n, 2)
        flip = torch.where(self._uniform(0, 1, n) < 0.5, -1.0, 1.0)

        theta = torch.zeros(n, 2, 3)  # from output coordinates to the padded photograph's, both in [-1, 1]
        theta[:, 0, 0], theta[:, 1, 1] = crop[:, 0] / LONG * flip, crop[:, 1] / LONG
        theta[:, :, 2] = (2 * corner + crop) / LONG - 1
        grid = F.affine_grid(theta, [n, 3, self.size, self.size], align_corners=False)
        x = F.grid_sample(self.pixels[index].float() / 255, grid, padding_mode="border", align_corners=False)

        brightness, contrast, saturation = (self._uniform(0.65, 1.4, n, 1, 1, 1) for _ in range(3))
        saturation = torch.where(self._uniform(0, 1, n, 1, 1, 1) < 0.1, 0.0, saturation)
        x = x * brightness
        x = torch.lerp(x.mean((1, 2, 3), keepdim=True), x, contrast)
        x = torch.lerp(x.mean(1, keepdim=True), x, saturation).clamp_(0, 1)
        return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
