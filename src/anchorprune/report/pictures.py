"""Pictures of kept tokens: what the model saw, and which patches of it went on."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageEnhance

if TYPE_CHECKING:
    from torch import Tensor

# Okabe and Ito's palette, https://jfly.uni-koeln.de/color/: told apart with every kind of colour vision.
ANCHOR = (230, 159, 0)  # orange
SELECTED = (86, 180, 233)  # sky blue
DARK = (0, 0, 0)


@dataclass(frozen=True)
class Prediction:
    """What a model, pruned `by` something or not, took an image for."""

    by: str
    name: str
    right: bool


@dataclass(frozen=True)
class Picture:
    """One image of the page.

    Attributes:
        original, kept: the image, and the image with its tokens marked; of the same size.
        truth: its class.
        predictions: in the order in which they are shown.
        what: why it is shown, in a few words.
        kept_in_words: what the marks say, for those who cannot see them.
    """

    original: Image.Image
    kept: Image.Image
    truth: str
    predictions: Sequence[Prediction]
    what: str
    kept_in_words: str


def unnormalised(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Image.Image:
    """The image behind a tower's input `[3, H, W]`: what the model saw, cropped and scaled as it was."""
    import torch

    rgb = pixels.float().cpu() * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1)
    data = (rgb.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.frombytes("RGB", (data.shape[1], data.shape[0]), bytes(data.flatten().tolist()))


def normalisation(transform: Any) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation that an image transform (torchvision's `Compose`) ends in; (0, 1) without one."""
    for step in reversed(getattr(transform, "transforms", [])):
        if hasattr(step, "mean") and hasattr(step, "std"):
            return [float(x) for x in step.mean], [float(x) for x in step.std]
    return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)


def patch_cells(tokens: Iterable[int], num_prefix_tokens: int) -> set[int]:
    """Token indices as patch numbers, row by row from 0; prefix tokens have no place in the picture."""
    return {int(token) - num_prefix_tokens for token in tokens if int(token) >= num_prefix_tokens}


def enlarged(image: Image.Image, scale: int) -> Image.Image:
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)


def kept_tokens(
    image: Image.Image, grid: tuple[int, int], kept: Collection[int], anchors: Collection[int] = ()
) -> Image.Image:
    """The image with dropped patches grey and dark, kept ones plain with a thin frame, anchors with a thick one and
    a dot.

    Args:
        image: RGB; width and height are multiples of the grid's columns and rows.
        grid: rows and columns of patches.
        kept, anchors: patch numbers, row by row from 0; anchors count as kept.
    """
    rows, columns = grid
    if image.width % columns or image.height % rows:
        raise ValueError(f"an image of {image.size} pixels has no even grid of {columns} × {rows} patches")
    width, height = image.width // columns, image.height // rows
    grey = ImageEnhance.Color(image).enhance(0.0)
    picture = Image.blend(grey, Image.new("RGB", image.size, DARK), 0.72)
    draw = ImageDraw.Draw(picture)
    thin = max(1, min(width, height) // 20)

    def corners(cell: int, inset: int = 0) -> tuple[int, int, int, int]:
        left, top = cell % columns * width, cell // columns * height
        return left + inset, top + inset, left + width - 1 - inset, top + height - 1 - inset

    for cell in sorted({*kept, *anchors}):
        left, top, right, bottom = corners(cell)
        picture.paste(image.crop((left, top, right + 1, bottom + 1)), (left, top))
        draw.rectangle((left, top, right, bottom), outline=SELECTED, width=thin)
    for cell in sorted(anchors):
        draw.rectangle(corners(cell), outline=DARK, width=4 * thin)
        draw.rectangle(corners(cell), outline=ANCHOR, width=3 * thin)
        left, top, right, bottom = corners(cell)
        x, y, radius = (left + right) / 2, (top + bottom) / 2, min(width, height) / 7
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ANCHOR, outline=DARK, width=thin)
    return picture


def legend_pictures(scale: int = 28) -> list[tuple[Image.Image, str]]:
    """A sample of each mark with its name, drawn by the same code as the pictures."""
    sample = Image.linear_gradient("L").resize((scale, scale)).convert("RGB")
    tint = Image.blend(sample, Image.new("RGB", sample.size, (120, 170, 90)), 0.6)
    grid = (1, 1)
    return [
        (kept_tokens(tint, grid, {0}, {0}), "anchor: kept"),
        (kept_tokens(tint, grid, {0}), "selected: kept"),
        (kept_tokens(tint, grid, ()), "dropped"),
    ]


def data_uri(image: Image.Image, kind: str = "JPEG") -> str:
    """The image as a `data:` URI, JPEG or PNG."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"quality": 88, "subsampling": 0} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
