"""Images that are files: all below a folder, or those that a list names."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from anchorprune.datasets.folder import MOST_TIMES
from anchorprune.datasets.images import EXTENSIONS, one_line
from anchorprune.datasets.reading import read_file
from anchorprune.embeddings.listing import Listing, beside
from anchorprune.embeddings.strings import Strings
from anchorprune.errors import FieldError
from anchorprune.reading import lines_in


class Files(Listing):
    """Files by their paths, relative to a folder; texts beside them are files of the same name."""

    def __init__(self, folder: str, ids: Strings) -> None:
        self.folder, self.ids = folder, ids

    def path(self, row: int) -> str:
        return os.path.join(self.folder, self.ids[row])

    def read(self, row: int) -> bytes:
        return read_file(self.path(row))

    def columns(self, row: int, names: Sequence[str]) -> dict[str, Any]:
        path = self.path(row)
        stem = os.path.splitext(path)[0]

        def part(extension: str) -> bytes | None:
            file = f"{stem}.{extension}"
            return read_file(file) if os.path.lexists(file) else None

        return beside(names, part, path)


def in_folder(folder: str) -> Files:
    """All images below a folder, sorted; ids are paths relative to it.

    Whatever is called like an image is listed: what turns out to be none is a failure, and said. Names that begin with
    a dot are skipped, symbolic links followed.

    Raises:
        FieldError: a folder that cannot be listed.
    """
    return Files(folder, Strings(_below(folder, "", frozenset(), Counter())))


def _below(
    folder: str, prefix: str, above: frozenset[tuple[int, int]], times: Counter[tuple[int, int]]
) -> Iterator[str]:
    try:
        status = os.stat(folder)
        with os.scandir(folder) as found:
            entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise FieldError("input", folder, f"cannot be listed ({one_line(error)})") from error
    if (here := (status.st_dev, status.st_ino)) in above:
        return  # a link to a folder that it lies in
    times[here] += 1
    if times[here] > MOST_TIMES:  # folders that link to one another have more ways than can be walked
        raise FieldError("input", folder, f"is come to by more than {MOST_TIMES} links; remove some")
    for entry in entries:
        if _is_folder(entry):
            yield from _below(entry.path, f"{prefix}{entry.name}/", above | {here}, times)
        elif os.path.splitext(entry.name)[1].lower()[1:] in EXTENSIONS:
            yield prefix + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: an image that cannot be read
        return False


def in_list(file: str) -> Files:
    """The images whose paths a text file names, one a line, relative to the file's folder; the paths are the ids.

    Raises:
        FieldError: it cannot be read as UTF-8 text.
    """
    ids = Strings()
    try:
        with open(file, encoding="utf-8-sig", errors="surrogateescape") as lines:
            for line in lines_in(lines):
                if path := line.rstrip("\r\n"):
                    ids.append(path)
    except (OSError, ValueError) as error:
        raise FieldError("input", file, f"cannot be read ({one_line(error)})") from error
    return Files(str(Path(file).parent), ids)


def of_paths(paths: Sequence[str]) -> Files:
    """Images that are named one by one; ids are the paths."""
    return Files("", Strings(paths))
