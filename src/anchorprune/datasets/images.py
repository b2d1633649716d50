"""Decoding one image: every way in which a file can be broken becomes one `BadImage`."""

from __future__ import annotations

import io
import struct
from typing import TYPE_CHECKING

from anchorprune.datasets.sampling import BadImage

if TYPE_CHECKING:
    from PIL.Image import Image

# PIL has no common base for "this file is broken"; a damaged PNG, for one, raises SyntaxError.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error)


def decode(data: bytes, source: str) -> Image:
    """The image in `data`, decoded and in RGB; `source` (a file, or a tar and key) opens the message.

    RGB comes before any resizing, as in clip-benchmark and torchvision: resizing a palette image first
    would fall back to nearest-neighbour, and resizing RGBA first would blend with what alpha hides.

    Raises BadImage where Pillow cannot read it.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        image.info.pop("transparency", None)  # it is dropped anyway, and Pillow would warn of it
        return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        # Pillow's own message holds only the address of our buffer.
        raise BadImage(f"{source}: not an image that Pillow can read ({len(data)} bytes)") from None
    except (*_BROKEN, Image.DecompressionBombError) as err:
        raise BadImage(f"{source}: {one_line(err)}") from err


def one_line(err: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters; its class where it has none."""
    text = str(err).strip()
    if text.startswith("<urlopen error "):
        text = text.removeprefix("<urlopen error ").removesuffix(">")
    return text.splitlines()[0][:200] if text else type(err).__name__
