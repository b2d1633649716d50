"""Whatever is done to the bytes of an image, it is still an image or a bad one.

`MUTATED_IMAGES=20000 pytest tests/test_mutated_images.py` looks at so many of each format.
"""

from __future__ import annotations

import io
import os
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from anchorprune.datasets.images import FORMATS, BadImage, decode

COUNT = int(os.environ.get("MUTATED_IMAGES", "40"))


def originals(kind: str) -> list[bytes]:
    """Of one format, in each of the modes that it has."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    found = []
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"):
        whole = Image.fromarray(pixels).convert("L" if mode == "I;16" else mode)
        out = io.BytesIO()
        try:
            whole = Image.fromarray(np.asarray(whole).astype(np.uint16) * 257) if mode == "I;16" else whole
            whole.save(out, kind, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")
        except (OSError, KeyError, ValueError, TypeError):  # not in this format
            continue
        found.append(out.getvalue())
    return found


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Some bytes changed, cut out, repeated, put in from elsewhere, or numbers made huge."""
    new = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(max(1, len(new)) if draw.random() < 0.5 else max(1, min(len(new), 100)))
        how, length = draw.randrange(6), draw.choice((1, 2, 4, 8, 64))
        if how == 0:
            new[at : at + 1] = bytes([draw.randrange(256)])
        elif how == 1:
            new[at : at + length] = draw.choice((b"\0", b"\xff", b"\x7f")) * length
        elif how == 2:
            del new[at : at + length]
        elif how == 3:
            new[at:at] = new[at : at + length]
        elif how == 4:
            other = draw.choice(others)
            start = draw.randrange(len(other))
            new[at : at + length] = other[start : start + length]
        else:
            del new[at:]
    return bytes(new)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_mutated_image_is_an_image_or_a_bad_one(kind: str) -> None:
    whole, draw, bad = originals(kind), random.Random(kind), []
    assert whole
    for number in range(COUNT):
        data = mutated(draw.choice(whole), whole, draw)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on what is odd about a file
            try:
                assert decode(data, "a file").mode == "RGB"
            except BadImage as err:
                bad.append(str(err))
            except BaseException as err:
                raise AssertionError(f"{kind}, number {number}: {data.hex()[:2000]}") from err
    assert bad
    assert all(reason.startswith("a file: ") for reason in bad)


def test_every_mode_that_a_format_has_is_mutated() -> None:
    assert {kind: len(originals(kind)) for kind in FORMATS} == pytest.approx(
        {"JPEG": 4, "PNG": 7, "WEBP": 6, "AVIF": 6, "TIFF": 8, "JPEG2000": 5, "GIF": 6, "BMP": 5, "PPM": 5, "QOI": 2},
        abs=3,
    )
