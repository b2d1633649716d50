"""What stands in files that anybody may have written, checked in one place: bytes, JSON, whole numbers, arrays.

Whatever is wrong with such a file is a ValueError here whose text is the reason; the reader that was called for it
names the file and the fix. Imports neither NumPy nor torch.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import stat
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_BYTES = 1 << 30  # of a file of texts or numbers; outcomes of 40 million images are smaller
MOST_LINE = 1 << 26  # characters of a line of a table or a list
MOST_PACKED = 1 << 26  # bytes that an archive of torch's may hold packed: the code of a TorchScript one
MOST_NESTED = 64  # lists and objects in each other; what walks over them calls itself
_TOO_DEEP = f"more than {MOST_NESTED} lists or objects are in each other"
WHOLE = range(-(1 << 63), 1 << 64)  # what NumPy, torch and other readers of JSON can hold
_HEADERS = {(1, 0): "read_array_header_1_0", (2, 0): "read_array_header_2_0"}  # of .npy files
_DIGITS = re.compile(r"[+-]?[0-9]+")  # Python takes 1_0 for ten, and the digits of every script
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{(\w+)\}|[{}]")


def bytes_of(path: str | os.PathLike[str]) -> bytes:
    """All that is in a file.

    Raises:
        OSError: it cannot be read, is no regular file (a FIFO would be waited for, a device never ends) or is larger
            than any file of texts or numbers.
        ValueError: a name that no file can have.
    """
    if (size := check_regular(path)) > MOST_BYTES:
        raise OSError(errno.EFBIG, f"{size:,} bytes, which is too large", os.fspath(path))
    with open(path, "rb") as file:
        return file.read(MOST_BYTES)


def check_regular(path: str | os.PathLike[str]) -> int:
    """OSError where no regular file is: a FIFO would be waited for, a device never ends. Gives its size.

    For use before a library opens it: opening a device may do something, opening a folder fails in other words.
    """
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a regular file", os.fspath(path))
    return status.st_size


def check_archive(path: str | os.PathLike[str]) -> None:
    """For use before torch reads it: OSError as `check_regular`, ValueError where it unpacks to far more than it is.

    torch packs no tensor. What is damaged, or no archive, is left to whoever reads it.
    """
    size = check_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
    except MemoryError:
        raise
    except Exception:  # zipfile raises half a dozen kinds for bytes that it cannot read
        return
    if unpacked > size + MOST_PACKED:
        raise ValueError(f"an archive of {size:,} bytes that unpacks to {unpacked:,}")


def lines_in(text: TextIO) -> Iterator[str]:
    """The lines of an open text file. ValueError for one that is longer than any line, before it fills the memory."""
    while line := text.readline(MOST_LINE):
        if len(line) == MOST_LINE:
            raise ValueError(f"a line of more than {MOST_LINE:,} characters")
        yield line


def path_of(text: str | os.PathLike[str]) -> Path:
    """The path that a person typed: `~` is the home; that of nobody stays as it is, a file that there is not."""
    return Path(os.path.expanduser(text))


def exists(path: str | os.PathLike[str]) -> bool:
    """`Path.is_file` that takes every text for a name: False also where it is none that a file can have."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # too long, not to be searched; a NUL byte, a lone surrogate
        return False


def json_of(content: bytes | str, *, nan_is_none: bool = False) -> Any:
    """What JSON holds; of bytes in UTF-8, 16 or 32, as the standard library tells them apart.

    Args:
        nan_is_none: whether NaN and Infinity, which Python's own writer makes of such numbers, are None; they are
            refused otherwise.

    Raises:
        ValueError: it is no JSON, is nested too deeply, has one key twice, a number that no other reader can hold, or a
            text that no file can hold.
    """
    try:
        text = content.decode(json.detect_encoding(content)) if isinstance(content, bytes) else content
        found = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=_object,
            parse_int=whole_number,
            parse_float=_fraction,
            parse_constant=(lambda _: None) if nan_is_none else _refused,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    _check_inner(found)
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        ((twice, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice[:40]!a} is there twice in one object")
    return found


def _fraction(text: str) -> float:
    return number if math.isfinite(number := float(text)) else _refused(text)


def _refused(text: str) -> Any:
    raise ValueError(f"{text[:20]} is no number that is finite")


def _check_inner(found: Any) -> None:
    """ValueError for what is nested too deeply, and for text with halves of surrogate pairs that are no bytes."""
    level = [found]
    for _ in range(MOST_NESTED + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value
                inner += value.values()
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and not value.isascii():
                try:
                    value.encode("utf-8", "surrogateescape")  # as names of files are held
                except UnicodeEncodeError:
                    raise ValueError(f"the text {value[:40]!a} holds half a character") from None
        if not inner:
            return
        level = inner
    raise ValueError(_TOO_DEEP)


def whole_number(text: str) -> int:
    """The whole number that a text is. ValueError for anything else, and for one of more than 64 bits."""
    text = text.strip()
    if len(text) > 40 or not _DIGITS.fullmatch(text) or (number := int(text)) not in WHOLE:
        raise ValueError(f"{text[:20]}{'…' * (len(text) > 20)} is no whole number of 64 bits")
    return number


def array_of(data: bytes) -> NDArray[Any]:
    """The array in the bytes of a .npy file: of real numbers, all finite.

    Raises:
        ValueError: anything else, such as a header that promises more than there is.
    """
    import numpy as np

    try:
        file = io.BytesIO(data)
        if (version := np.lib.format.read_magic(file)) not in _HEADERS:
            raise ValueError(f"its version {version} is not one of {', '.join(map(str, _HEADERS))}")
        shape, _, kind = getattr(np.lib.format, _HEADERS[version])(file)
        promised, there = kind.itemsize * math.prod(shape), len(data) - file.tell()
        if kind.kind not in "biuf":
            raise ValueError(f"its values are {kind}, not numbers")
        if any(size < 0 for size in shape) or promised > there:
            raise ValueError(f"its header promises {promised:,} bytes, shape {shape}, and there are {there:,}")
        array: NDArray[Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except MemoryError:
        raise
    except Exception as error:  # NumPy, ast and tokenize raise half a dozen kinds for a header that they cannot read
        raise ValueError(reason(error)) from error
    if not np.isfinite(array).all():
        raise ValueError("it holds numbers that are not finite")
    return array


def arrays_of(data: bytes) -> dict[str, NDArray[Any]]:
    """The arrays in the bytes of a .npz file by their names, each as `array_of` gives it.

    Raises:
        ValueError: as there, or the file is no archive, or unpacks to more than any file of ours.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(member.file_size for member in archive.infolist()) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
            return {name.removesuffix(".npy"): array_of(archive.read(name)) for name in archive.namelist()}
    except (MemoryError, ValueError):
        raise
    except Exception as error:  # zipfile and zlib raise half a dozen kinds for bytes that they cannot read
        raise ValueError(reason(error)) from error


def filled(template: str, **values: str) -> str:
    """The template with each `{name}` replaced; `{{` and `}}` are braces. Nothing is formatted.

    Raises:
        ValueError: another placeholder, or a stray brace.
    """

    def one(match: re.Match[str]) -> str:
        if match[0] in ("{{", "}}"):
            return match[0][0]
        if match[1] not in values:
            raise ValueError(f"{match[0]} is no placeholder")
        return values[match[1]]

    return _PLACEHOLDER.sub(one, template)


def reason(error: BaseException) -> str:
    """The exception's first line, to be put into a sentence of ours that names the file."""
    text = (isinstance(error, OSError) and error.strerror) or str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[0][:160] if lines else type(error).__name__


def check_real(tensor: Any, dim: int) -> None:
    """ValueError, with the reason, for what is no plain tensor of `dim` dimensions of real numbers.

    Of what `torch.load` reads: sparse, quantised, nested and meta tensors are none, nor is one that says that it is
    larger than what was stored of it.
    """
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"is {type(tensor).__name__}, not a tensor")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested or tensor.is_meta:
        kinds = {"quantised": tensor.is_quantized, "nested": tensor.is_nested, "without numbers": tensor.is_meta}
        raise ValueError(f"is {next((kind for kind, yes in kinds.items() if yes), 'sparse')}, not a plain tensor")
    if tensor.dim() != dim or not tensor.numel():
        raise ValueError(f"has the shape {list(tensor.shape)}, not {dim} dimensions with numbers in them")
    if not tensor.is_floating_point():
        raise ValueError(f"holds numbers of the type {str(tensor.dtype).removeprefix('torch.')}, not float32")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise ValueError(f"has the shape {list(tensor.shape)}, and fewer numbers are stored")
