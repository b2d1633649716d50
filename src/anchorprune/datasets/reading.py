"""The bytes of one file of a data set: a regular file's, and no more of them than an image can have."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from anchorprune.datasets.images import one_line
from anchorprune.datasets.sampling import BadImage
from anchorprune.errors import UserError
from anchorprune.files import lines_of, text_of

MAX_BYTES = 1 << 29  # of an image's file or member; a photograph of as many pixels as are allowed takes less
MAX_TEXT = 1 << 26  # bytes of class names, prompts and labels


def read_file(path: str | os.PathLike[str], offset: int = 0, size: int | None = None) -> bytes:
    """A file's bytes, or `size` of them from `offset` on.

    Raises:
        BadImage: it cannot be read, is larger than any image, or is no regular file: opening a FIFO would wait for
            ever, and a device never ends.
    """
    try:
        return _read(path, offset, size, MAX_BYTES)
    except (OSError, ValueError) as err:  # ValueError: a null byte in a path
        raise BadImage(f"{os.fspath(path)}: {one_line(err)}") from err


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that lies beside images, without blanks around them.

    UserError where it cannot be read as UTF-8, is no regular file, or is larger than any list of class names.
    """
    try:
        return lines_of(text_of(_read(file, 0, None, MAX_TEXT)))
    except (OSError, ValueError) as err:
        raise UserError(f"{file}: cannot be read as UTF-8 text ({one_line(err)}).") from err


def _read(path: str | os.PathLike[str], offset: int, size: int | None, most: int) -> bytes:
    # without waiting for somebody who writes into a FIFO
    with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is not a regular file")
        if (length := status.st_size if size is None else size) > most:
            raise ValueError(f"has {length:,} bytes, more than are read ({most:,})")
        file.seek(offset)
        data = file.read(length)
    if len(data) < length:
        raise ValueError(f"ends after {len(data)} of {length} bytes")
    return data
