"""Text files as people write them; the files that anchorprune writes, all of each or nothing; fingerprints, folders."""

from __future__ import annotations

import codecs
import errno
import hashlib
import io
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, cast

from anchorprune import locks
from anchorprune.errors import FieldError, Unwritten, UserError
from anchorprune.reading import bytes_of, check_regular

StrPath = str | os.PathLike[str]
_LONGEST = 190  # bytes of 255, before an ending and a digest
_SMALL = 4096  # bytes: class names, prompts, labels
UNFINISHED = ".anchorprune-*.tmp"  # files of that kind become others, or are of a process that was killed
_STALE = 3600.0  # seconds after which nobody is writing a temporary file any more
_CLEARED: set[Path] = set()  # folders that were looked through for temporary files of killed processes


def user_cache() -> Path:
    """`anchorprune` in the user's cache folder. UserError for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anchorprune"
    except RuntimeError as error:
        raise UserError("there is no home folder for what is downloaded; set XDG_CACHE_HOME to a folder") from error


def read_text(path: StrPath) -> str:
    """The text in a file, as `text_of` reads it. OSError or ValueError where it cannot be."""
    return text_of(bytes_of(path))


def text_of(data: bytes) -> str:
    """UTF-8 text as it is meant: without the mark that editors put in front, with `\n` at line ends.

    Raises:
        ValueError: no UTF-8, or no text.
    """
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError("it is UTF-16: save it as UTF-8")
    if b"\0" in data:
        raise ValueError("it holds NUL bytes, so is no text")
    return data.decode("utf-8").replace("\ufeff", "").replace("\r\n", "\n").replace("\r", "\n")


def lines_of(text: str) -> list[str]:
    """Its lines without blanks around them; what is empty at its end is left out."""
    return [line.strip() for line in text.rstrip().split("\n")] if text.strip() else []


def fingerprint(path: StrPath) -> str:
    """The sha256 of the file's content, as hex (about 0.6 s a GB). UserError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        check_regular(path)
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    return digest.hexdigest()


def folder_stamp(folder: StrPath) -> list[Any]:
    """How many files are below, their bytes in all, and a digest of their names, sizes and what small ones hold."""
    count, total, digest = 0, 0, hashlib.sha256()
    for path in sorted(Path(folder).rglob("*")):
        if os.path.isfile(path):
            size = path.stat().st_size
            count, total = count + 1, total + size
            name = str(path.relative_to(folder)).encode("utf-8", "surrogateescape")
            digest.update(b"%s\0%d\0" % (name, size))
            if size <= _SMALL:
                with suppress(OSError):  # said where it is read
                    digest.update(path.read_bytes())
    return [count, total, digest.hexdigest()]


@contextmanager
def output_folder(flag: str, path: StrPath, *names: str) -> Iterator[Path]:
    """The folder that results go to, there and writable; one made here does not stay behind empty.

    Args:
        names: of what will be written in it; those that end in `/` are folders of their own.

    Raises:
        UserError: it cannot be had, or one of the names cannot be a file there.
    """
    target = Path(path)
    try:
        made = not os.path.lexists(target)
        if not made and not target.is_dir():
            raise FieldError(flag, str(path), "is a file; name a folder")
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
        clear_unfinished(real_path(target))
        for name in names:
            _check_name(flag, path, name)
            _check_length(target / name)
    except OSError as error:
        raise FieldError(
            flag, str(path), f"cannot write there ({error.strerror or error}); name another folder"
        ) from error
    try:
        yield target
    finally:
        if made:
            with suppress(OSError):  # not empty, as it should be
                target.rmdir()


def _check_name(flag: str, folder: StrPath, name: str) -> None:
    place, is_folder = Path(folder, name), name.endswith("/")
    try:
        kind = os.stat(place).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        reason = error.strerror or error
        raise FieldError(flag, str(folder), f"{name} cannot be in it ({reason}); name another folder") from error
    if not (stat.S_ISDIR(kind) if is_folder else stat.S_ISREG(kind)):
        what = "a file" if is_folder else "a folder" if stat.S_ISDIR(kind) else "not a regular file"
        raise FieldError(flag, str(folder), f"{name.rstrip('/')} in it is {what}; name another folder")


def check_output(path: StrPath, flag: str = "output") -> None:
    """Raise UserError unless a file can be written at `path`. For use before the work; leaves nothing behind."""
    folder = Path(path).parent
    try:
        target = real_path(path)
        folder = target.parent
        if os.fspath(path).endswith(("/", os.sep)):  # which `Path` passes over
            raise FieldError(flag, str(path), "this is the name of a folder; name a file")
        if (kind := _no_file(target)) is not None:
            raise FieldError(flag, str(path), f"this is {kind}; name a file")
        if not folder.is_dir():
            raise FieldError(flag, str(path), f"there is no folder {folder}; make it first or name another")
        _check_length(target)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FieldError:
        raise
    except (OSError, ValueError) as error:  # ValueError: half of a surrogate pair, which no file system takes
        reason = getattr(error, "strerror", None) or error
        raise FieldError(flag, str(path), f"cannot write in {folder} ({reason}); name another file") from error


def _no_file(target: Path) -> str | None:
    """What a real path is where no file can be put, in words.

    Renaming over /dev/null, run as root, would replace the device by a file.
    """
    if not os.path.lexists(target) or target.is_file():
        return None
    link = "a link that leads to itself" if target.is_symlink() else "not a regular file"
    return "a folder" if target.is_dir() else link


def _check_length(path: Path) -> None:
    """OSError where the file system takes no such name, or not the temporary one beside it."""
    for each in (path, path.parent / _temporary_name()):
        with suppress(FileNotFoundError, NotADirectoryError):
            os.lstat(each)


def short_name(name: str) -> str:
    """The name, cut off where a file system would not take it with an ending behind; a digest keeps it apart then."""
    data = name.encode("utf-8", "surrogateescape")
    if len(data) <= _LONGEST:
        return name
    return f"{data[:_LONGEST].decode('utf-8', 'ignore')}_{hashlib.sha256(data).hexdigest()[:8]}"


def real_path(path: StrPath) -> Path:
    """Where the file really is: a rename onto a symbolic link would replace the link."""
    return Path(os.path.realpath(path))


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """A temporary file beside `path`, to be written within; it takes the place of `path` at the end, all or nothing.

    A failure or an interruption leaves an earlier file at `path` as it was.

    Raises:
        Unwritten: it cannot be written.
    """
    target = real_path(path)
    try:
        if (kind := _no_file(target)) is not None:
            raise OSError(errno.EEXIST, f"it is {kind}")
        if target.parent not in _CLEARED:
            clear_unfinished(target.parent)
        with _locked_temporary(target.parent) as temporary:
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, target)
    except UserError:
        raise
    except OSError as error:
        raise Unwritten(path, error) from error


@contextmanager
def writing(path: StrPath) -> Iterator[IO[bytes]]:
    """A file to be written to `path`, all or nothing, by a library: whatever the name, and whatever write fails.

    Arrow takes no name that is no UTF-8. torch's archives end the process where a write fails while they are closed;
    NumPy, which gives a real file to C, says nothing of what fails while that is flushed. So what comes after such a
    write is let go, and the error raised at the end.

    Raises:
        Unwritten: it cannot be written.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        with _Unfailing(file) as unfailing:  # closed here: Python 3.13 complains on stderr if it is left to the end
            yield cast(IO[bytes], unfailing)
        if unfailing.error is not None:
            raise unfailing.error


class _Unfailing(io.RawIOBase):
    """Passes on what is written, up to what cannot be.

    Attributes:
        error: what that failed with.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True  # torch.export goes back to the start when it has written

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def write(self, data: Any, /) -> int:
        if self.error is None:
            try:
                self._file.write(data)
            except OSError as error:
                self.error = error
        return memoryview(data).nbytes

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            self.error = self.error or error


@contextmanager
def _locked_temporary(folder: Path) -> Iterator[Path]:
    """An empty file in `folder` that goes at the end; locked, so that nobody takes it for one that was left."""
    while True:
        # In the same folder, because a rename is atomic within one file system only; by chance, because processes of
        # several machines share storage; not named .json, so that `build` never takes it for a result.
        path = folder / _temporary_name()
        lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        try:
            locks.take(lock)
            if path.exists():  # else it was taken for one that was left, before it was locked
                yield path
                return
        finally:
            os.close(lock)
            path.unlink(missing_ok=True)


def _temporary_name() -> str:
    return f".anchorprune-{locks.machine()}-{secrets.token_hex(8)}.tmp"


def clear_unfinished(folder: Path) -> None:
    """Remove the temporary files in `folder` of processes that were killed.

    Those of living ones are locked by them; where locks tell nothing, as of other machines, an hour has to have gone.
    """
    _CLEARED.add(folder)
    ours = f".anchorprune-{locks.machine()}-"
    with suppress(OSError):
        for left in folder.glob(UNFINISHED):
            with suppress(OSError), open(left, "r+b") as file:
                free = locks.take(file.fileno(), wait=False) if left.name.startswith(ours) else None
                if free or (free is None and time.time() - left.stat().st_mtime > _STALE):
                    left.unlink()


def write_bytes(content: bytes, path: StrPath) -> None:
    """Write a file, all of it or nothing. Unwritten where it cannot be."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(content)


def write_text(text: str, path: StrPath) -> None:
    r"""Write a file as UTF-8, all of it or nothing; its line ends stay as they are.

    What no UTF-8 can be, as a byte of a file's name, is spelt out: `\udcff`, which JSON reads as what it was.
    """
    write_bytes(text.encode("utf-8", "backslashreplace"), path)


def unreadable(path: StrPath, error: OSError | ValueError) -> UserError:
    """The sentence for a file that cannot be read; ValueError is a name that no file can have."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    reason = "no such file" if isinstance(error, FileNotFoundError) else reason
    return UserError(f"{path}: {reason}; name a file that can be read")
