"""What a command writes, held against what it reads and against itself, before the work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anchorprune.errors import FieldError
from anchorprune.files import StrPath, check_output, clear_unfinished, real_path
from anchorprune.reading import bytes_of, json_of

_LARGE = 1 << 26  # bytes: no result is larger


@dataclass(frozen=True)
class Read:
    """Something that is read: a file, or a folder with all that lies in it today.

    Attributes:
        name: the flag that names it, or what it is called where no flag does.
        path: where it is; nothing need be there.
        endings: of a folder, the files that count; empty: all.
        passed_over: of a folder, the endings of files that nobody reads there.
        names: the files that a list names, wherever they are; asked only where an output is there already.
    """

    name: str
    path: StrPath
    endings: tuple[str, ...] = ()
    passed_over: tuple[str, ...] = ()
    names: Callable[[], Iterable[StrPath]] | None = None


def check_outputs(outputs: Sequence[tuple[str, StrPath]], reads: Iterable[Read] = ()) -> None:
    """Raise UserError unless each output can be written, is read by nobody, and is written once.

    Files are the same where their real paths are, or where both are one file by hard links. An earlier result in a
    folder that is read may be written again: only what is not ours is an input there.

    Args:
        outputs: flags and paths.
        reads: what the same command reads.

    Raises:
        FieldError: with the flag of the output.
    """
    for flag, path in outputs:
        check_output(path, flag)
    for folder in {real_path(path).parent for _, path in outputs}:
        clear_unfinished(folder)
    check_apart(outputs, reads)


def check_apart(outputs: Sequence[tuple[str, StrPath]], reads: Iterable[Read] = ()) -> None:
    """`check_outputs` without the question whether files can be written."""
    known: dict[Any, Read] = {}
    folders: list[tuple[Path, Read]] = []
    lists: list[Read] = []
    for read in reads:
        if read.names:
            lists.append(read)
            continue
        with suppress(OSError, ValueError):
            known |= dict.fromkeys(_marks(read.path), read)
            if os.path.isdir(read.path):
                folders.append((real_path(read.path), read))
    written: dict[Any, str] = {}
    for flag, path in outputs:
        marks = _marks(path)
        for mark in marks:
            if (found := known.get(mark)) is not None:
                raise _refused(flag, path, found)
            if (other := written.get(mark)) is not None:
                raise _twice(flag, path, other)
        written |= dict.fromkeys(marks, flag)
        for folder, read in folders:
            if _is_read_in(path, folder, read):
                raise _refused(flag, path, read)
        for read in lists:
            if _is_named(path, read):
                raise _refused(flag, path, read)


def check_names(flag: str, folder: StrPath, names: Iterable[str], reads: Iterable[Read]) -> None:
    """Raise FieldError where one of the files that a command names itself, in the folder of its output, is read.

    Of what lies in folders that are read only that: `sweep.csv` in a folder of photographs is a sweep's.
    """
    files = [read for read in reads if not os.path.isdir(read.path)]
    check_apart([(flag, Path(folder, name)) for name in dict.fromkeys(names)], files)


def _marks(path: StrPath) -> list[Any]:
    """What tells a file from all others: its real path and, where it is there, its inode."""
    marks: list[Any] = [os.fspath(real_path(path))]
    with suppress(OSError):
        found = os.stat(path)
        marks.append((found.st_dev, found.st_ino))
    return marks


def _is_read_in(path: StrPath, folder: Path, read: Read) -> bool:
    target = real_path(path)
    try:
        found = os.stat(target)
    except OSError:
        return False  # a new file is nobody's input
    places = [target] if target.is_relative_to(folder) else []
    if found.st_nlink > 1:
        places += _linked(folder, (found.st_dev, found.st_ino))
    return any(_counts(place, read) for place in places) and not _is_ours(target)


def _is_named(path: StrPath, read: Read) -> bool:
    assert read.names
    try:
        found = os.stat(path)
    except OSError:
        return False  # a new file is nobody's input
    if _is_ours(real_path(path)):
        return False
    for named in read.names():
        with suppress(OSError, ValueError):
            if os.path.samestat(found, os.stat(named)):
                return True
    return False


def _counts(place: Path, read: Read) -> bool:
    name = place.name.lower()
    return not name.endswith(read.passed_over) and (not read.endings or name.endswith(read.endings))


def _linked(folder: Path, inode: tuple[int, int]) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                found = os.stat(os.path.join(parent, name))
                if (found.st_dev, found.st_ino) == inode:
                    yield Path(parent, name)


def _is_ours(path: Path) -> bool:
    """Whether an evaluation wrote it: a result, or the outcomes beside one."""
    if path.name.endswith(".outcomes.npz"):
        return True
    with suppress(OSError, ValueError):
        content = json_of(bytes_of(path), nan_is_none=True) if path.stat().st_size <= _LARGE else None
        return isinstance(content, dict) and {"metrics", "task", "model"} <= content.keys()
    return False


def _refused(flag: str, path: StrPath, read: Read) -> FieldError:
    if not read.name.isidentifier():
        return FieldError(flag, str(path), f"this is {read.name}; name another file")
    said = "is read as {}; name another file"
    return FieldError(flag, str(path), said.format(read.name), typed=said.format(f"--{read.name}"))


def _twice(flag: str, path: StrPath, other: str) -> FieldError:
    said = "is what {} writes, too; name another file"
    return FieldError(flag, str(path), said.format(other), typed=said.format(f"--{other}"))
