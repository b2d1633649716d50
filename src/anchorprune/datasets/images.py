"""Decoding one image as a viewer shows it; every way in which a file can be broken becomes one `BadImage`."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image, Transpose


MAX_PIXELS = 178_956_970  # of an image, decoded; where Pillow itself speaks of a decompression bomb
MAX_RATIO = 500  # of its sides: one pixel high, it would be resized to a strip that no memory holds

# The formats of photographs that Pillow reads. What it hands to other programs (PostScript to Ghostscript), or only
# knows the header of, is none, whatever a file's name says; nor is what has no mark to be known by (TGA). An MPO file
# is a JPEG with more pictures behind the first.
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "JPEG2000", "GIF", "BMP", "PPM", "QOI")
# And how their files' names end.
EXTENSIONS = (
    *("webp", "png", "jpg", "jpeg", "jpe", "jfif", "mpo", "apng", "avif", "avifs", "tif", "tiff"),
    *("jp2", "j2k", "jpc", "jpf", "jpx", "j2c", "gif", "bmp", "ppm", "pgm", "pbm", "pnm", "qoi"),
)

_PLAIN = (512, 512)  # pixels of a picture that any transform can take
_ORIENTATION = 0x0112  # of EXIF
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # of TIFF


class BadImage(Exception):
    """One image cannot be read; the message names its file (or tar and key) and the reason."""


def decode(data: bytes, source: str, least: tuple[int, int] | None = None) -> Image:
    """The image in `data`, decoded and in RGB; `source` (a file, or a tar and key) opens the message.

    Upright as its EXIF says; 16-bit grey scaled to 8 bits; of several frames the first. Transparency is dropped, as in
    clip-benchmark and torchvision. RGB comes before any resizing, as there: resizing a palette image first would fall
    back to nearest-neighbour, and resizing RGBA first would blend with what alpha hides.

    With `least`, a width and height, a JPEG may come at a half, a quarter or an eighth of its size, whichever is the
    smallest that is no smaller than that: its decoder then computes no more.

    Raises BadImage where Pillow cannot read it, it is in none of `FORMATS`, has more than `MAX_PIXELS`, or one side
    that is more than `MAX_RATIO` times the other.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_formats())
        check_size(image)
        if least is not None:
            image.draft("RGB", least)
        if image.info.get("default_image"):  # of an animated PNG, for viewers that know none
            image.seek(1)
        image.load()
        turn = _turn(image)  # what has been converted knows no EXIF
        image.info.pop("transparency", None)  # it is dropped anyway, and Pillow would warn of it
        image = image if image.mode == "RGB" else _rgb(image)
        return image if turn is None else image.transpose(turn)
    except UnidentifiedImageError:
        # Pillow's own message holds only the address of our buffer.
        raise BadImage(f"{source}: not an image that Pillow can read ({len(data)} bytes)") from None
    except BadImage as err:
        raise BadImage(f"{source}: {err}") from None
    except Exception as err:  # decoders raise anything: OSError, SyntaxError, ValueError, RuntimeError, struct.error …
        raise BadImage(f"{source}: {one_line(err)}") from err


@contextmanager
def photographs_only() -> Iterator[None]:
    """Within, Pillow opens `FORMATS` only, whoever asks it: other packages' data sets name none."""
    from PIL import Image

    formats, before = list(_formats()), Image.ID
    Image.ID = formats
    try:
        yield
    finally:
        Image.ID = before


def check_size(image: Any) -> Any:
    """The image itself; BadImage for one of Pillow's that is larger than `decode` takes."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        return image
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise BadImage(f"has {width} × {height} pixels, more than are decoded ({MAX_PIXELS:,})")
    if max(width, height) > MAX_RATIO * min(width, height):
        raise BadImage(f"has {width} × {height} pixels, one side more than {MAX_RATIO} times the other")
    return image


def transformed(transform: Callable[[Any], Any], image: Any, source: str) -> Any:
    """`transform(image)`; BadImage where it fails on this image.

    A transform that fails on a plain grey picture, too, is wrong itself: what it raised goes on.
    """
    try:
        return transform(image)
    except BadImage:
        raise
    except Exception as err:
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise
        try:
            transform(Image.new("RGB", _PLAIN, (128, 128, 128)))
        except Exception:
            raise err from None
        raise BadImage(f"{source}: cannot be preprocessed ({one_line(err)})") from err


@functools.cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow has."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _turn(image: Image) -> Transpose | None:
    """What makes the image upright; None for one that is, or whose EXIF cannot be read."""
    from PIL.Image import Transpose

    turns = {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
    try:
        return turns.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # the pixels are whole all the same
        return None


def _rgb(image: Image) -> Image:
    """In RGB. Pillow's own conversion of more than 8 bits cuts off what is brighter than 255."""
    if not image.mode.startswith(("I", "F")):
        return image.convert("RGB")
    import numpy as np
    from PIL import Image

    white, inverted = 65535, False
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        white, inverted = 2 ** tags.get(_BITS_PER_SAMPLE, (16,))[0] - 1, tags.get(_PHOTOMETRIC) == 0
    if image.mode == "F" or white > 65535 or (image.mode == "I" and image.format == "TIFF"):
        raise BadImage("its pixels are signed, of 32 bits or floating-point, of which nothing says what is white")
    grey = np.asarray(image).astype(np.int64).clip(0, white)
    grey = (grey * 255 + white // 2) // white
    return Image.fromarray((255 - grey if inverted else grey).astype(np.uint8)).convert("RGB")


def one_line(err: BaseException) -> str:
    """The first line of an exception's message, at most 200 characters; its class where it has none."""
    text = str(err).strip()
    if text.startswith("<urlopen error "):
        text = text.removeprefix("<urlopen error ").removesuffix(">")
    return text.splitlines()[0][:200] if text else type(err).__name__
