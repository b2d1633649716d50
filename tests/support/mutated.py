"""Real images of every format that is read, and what may become of a file's bytes."""

from __future__ import annotations

import io
import random

import numpy as np
from PIL import Image


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
