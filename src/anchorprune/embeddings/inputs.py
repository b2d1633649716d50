"""What `input` names, found: a folder, tars, tables, lists of paths; patterns spelled out."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from anchorprune.datasets.images import EXTENSIONS
from anchorprune.datasets.remote import is_url
from anchorprune.embeddings.files import in_folder, in_list, of_paths
from anchorprune.embeddings.listing import Listing
from anchorprune.embeddings.request import EncodeRequest
from anchorprune.embeddings.tables import open_tables
from anchorprune.embeddings.tars import open_tars
from anchorprune.errors import FieldError
from anchorprune.reading import whole_number

_ENDINGS = {
    "tars": (".tar",),
    "table": (".parquet", ".pq", ".csv", ".tsv", ".jsonl", ".ndjson"),
    "list": (".txt", ".lst"),
    "image": tuple(f".{each}" for each in EXTENSIONS),
}
_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_CHOICES = re.compile(r"\{([^{}]*,[^{}]*)\}")
_MOST = 10_000_000  # paths that a pattern may stand for


def open_input(request: EncodeRequest) -> Listing:
    """The images that the request names, listed.

    Raises:
        FieldError: nothing there, or what it is cannot be told.
    """
    paths = [path for pattern in request.input for path in _spelled_out(pattern)]
    kind = request.input_format
    if kind == "auto":
        kind, paths = _told(paths)
    if kind in ("tars", "table") and len(paths) == 1 and os.path.isdir(paths[0]):
        paths = _in_folder(paths[0], kind)
    if missing := next((path for path in paths if not is_url(path) and not os.path.exists(path)), None):
        raise FieldError("input", missing, "no such file or folder")
    if other := next((path for path in paths if not is_url(path) and not _is_plain(path)), None):
        raise FieldError("input", other, "is neither a regular file nor a folder; reading it might never end")
    if kind != "tars" and (address := next(filter(is_url, paths), None)):
        raise FieldError("input", address, "of addresses only tars can be read; download it first")
    for field in ("image_column", "id_column") if kind != "table" else ():
        if (given := getattr(request, field)) is not None:
            raise FieldError(field, given, f"{' '.join(request.input[:3])} is no table; leave it out")
    if kind == "tars":
        listing: Listing = open_tars(paths, request.columns, request.cache_dir)
    elif kind == "table":
        listing = open_tables(paths, request)
    elif kind == "image":
        listing = of_paths(paths)
    elif len(paths) > 1:
        raise FieldError("input", request.input, f"one {kind} at a time; give each an output of its own")
    elif kind == "list":
        listing = in_list(paths[0])
    else:
        listing = in_folder(paths[0])
    if not len(listing):
        raise FieldError("input", " ".join(request.input), f"holds no image (.{', .'.join(EXTENSIONS)})")
    return listing


def files_of(request: EncodeRequest) -> list[str]:
    """The files that are read before an image is: tars, tables and lists, in folders too.

    Raises:
        FieldError: a pattern that stands for nothing.
    """
    paths = [path for pattern in request.input for path in _spelled_out(pattern) if not is_url(path)]
    return [
        file
        for path in paths
        if not path.lower().endswith(_ENDINGS["image"])  # which no output is called
        for file in ([*_in_folder(path, "tars"), *_in_folder(path, "table")] if os.path.isdir(path) else [path])
    ]


def _is_plain(path: str) -> bool:
    return os.path.isfile(path) or os.path.isdir(path)


def _told(paths: Sequence[str]) -> tuple[str, list[str]]:
    """What the paths are by their names, and the files meant: those in a folder, where it holds tars or tables."""
    if len(paths) == 1 and os.path.isdir(paths[0]):
        names = [name for name in os.listdir(paths[0]) if not name.startswith(".")]
        kinds = {kind for name in names for kind, ends in _ENDINGS.items() if name.lower().endswith(ends)}
        kinds -= {"list"}  # captions, say
        if any(os.path.isdir(os.path.join(paths[0], name)) for name in names):
            kinds.add("image")
        if len(kinds) > 1:
            text = f"holds {' and '.join(sorted(kinds))}: say which with {{}}"
            raise FieldError("input", paths[0], text.format("input_format"), typed=text.format("--input_format"))
        kind = next(iter(kinds), "image")
        return ("folder", list(paths)) if kind == "image" else (kind, _in_folder(paths[0], kind))
    kinds = {next((k for k, ends in _ENDINGS.items() if _name(path).endswith(ends)), "") for path in paths}
    if len(kinds) != 1 or kinds == {""}:
        text = "what it is cannot be told by its name; say it with {}"
        raise FieldError("input", " ".join(paths[:3]), text.format("input_format"), typed=text.format("--input_format"))
    return kinds.pop(), list(paths)


def _name(path: str) -> str:
    return (path.partition("?")[0] if is_url(path) else path).lower()


def _in_folder(folder: str, kind: str) -> list[str]:
    found = sorted(name for name in os.listdir(folder) if name.lower().endswith(_ENDINGS[kind]))
    return [os.path.join(folder, name) for name in found if not name.startswith(".")]


def _spelled_out(pattern: str) -> list[str]:
    """The paths that `{00..12}`, `{a,b}`, `*`, `?` and `[…]` stand for; a path that is there as it is, itself."""
    pattern = pattern if is_url(pattern) else os.path.expanduser(pattern)
    if not is_url(pattern) and os.path.lexists(pattern):
        return [pattern]
    paths = []
    for path in _braces(pattern):
        if is_url(path) or not glob.has_magic(path):
            paths.append(path)
        elif found := sorted(glob.glob(path, recursive=True), key=lambda found: Path(found).parts):
            paths += found
        else:
            raise FieldError("input", path, "no file or folder is called so")
        if len(paths) > _MOST:
            raise FieldError("input", pattern, f"stands for more than {_MOST:,} files")
    return paths


def _braces(pattern: str) -> Iterator[str]:
    if found := _NUMBERS.search(pattern):
        first, last = found.groups()
        width = len(first) if first.startswith("0") or len(first) == len(last) else 0
        between: Sequence[str] = [f"{n:0{width}d}" for n in _range(first, last, pattern)]
    elif found := _CHOICES.search(pattern):
        between = found[1].split(",")
    else:
        yield pattern
        return
    for each in between:
        yield from _braces(pattern[: found.start()] + each + pattern[found.end() :])


def _range(start: str, end: str, pattern: str) -> range:
    try:
        first, last = whole_number(start), whole_number(end)
    except ValueError as error:
        raise FieldError("input", pattern, str(error)) from error
    if abs(last - first) > _MOST:
        raise FieldError("input", pattern, f"stands for more than {_MOST:,} files")
    return range(first, last + 1) if first <= last else range(first, last - 1, -1)
