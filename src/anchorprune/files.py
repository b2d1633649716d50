"""Text files as people write them; the files that anchorprune writes, all of each or nothing; fingerprints, folders."""

from __future__ import annotations

import codecs
import hashlib
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from anchorprune.errors import FieldError, UserError
from anchorprune.reading import bytes_of

StrPath = str | os.PathLike[str]
_SMALL = 4096  # bytes: class names, prompts, labels


def user_cache() -> Path:
    """`anchorprune` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anchorprune"


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
        if path.is_file():
            size = path.stat().st_size
            count, total = count + 1, total + size
            name = str(path.relative_to(folder)).encode("utf-8", "surrogateescape")
            digest.update(b"%s\0%d\0" % (name, size))
            if size <= _SMALL:
                digest.update(path.read_bytes())
    return [count, total, digest.hexdigest()]


@contextmanager
def output_folder(flag: str, path: StrPath, page: str = "report.html") -> Iterator[Path]:
    """The folder that results go to, there and writable; one made here does not stay behind empty.

    Raises:
        UserError: it cannot be had, or the page that will be written in it is a folder.
    """
    target, made = Path(path), not os.path.lexists(path)
    if not made and not target.is_dir():
        raise FieldError(flag, str(path), "is a file; name a folder")
    try:
        target.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=target):
            pass
    except OSError as error:
        raise FieldError(
            flag, str(path), f"cannot write there ({error.strerror or error}); name another folder"
        ) from error
    if (target / page).is_dir():
        raise FieldError(flag, str(path), f"{page} in it is a folder; name another folder")
    try:
        yield target
    finally:
        if made:
            with suppress(OSError):  # not empty, as it should be
                target.rmdir()


def check_output(path: StrPath, flag: str = "output") -> None:
    """Raise UserError unless a file can be written at `path`. For use before the work; leaves nothing behind."""
    target = real_path(path)
    folder = target.parent
    try:
        # Renaming over /dev/null, run as root, would replace the device by a file.
        if target.exists() and not target.is_file():
            kind = "a folder" if target.is_dir() else "not a regular file"
            raise FieldError(flag, str(path), f"this is {kind}; name a file")
        if not folder.is_dir():
            raise FieldError(flag, str(path), f"there is no folder {folder}; make it first or name another")
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise FieldError(flag, str(path), f"cannot write in {folder} ({reason}); name another file") from error


def real_path(path: StrPath) -> Path:
    """Where the file really is: a rename onto a symbolic link would replace the link."""
    return Path(os.path.realpath(path))


@contextmanager
def replacing(path: StrPath) -> Iterator[Path]:
    """A temporary file beside `path`, to be written within; it takes the place of `path` at the end, all or nothing.

    A failure or an interruption leaves an earlier file at `path` as it was.
    """
    target = real_path(path)
    # In the same folder, because a rename is atomic within one file system only; by chance, because process ids
    # collide between machines on shared storage; not named .json, so that `build` never takes it for a result.
    temporary = target.parent / f".anchorprune-{secrets.token_hex(8)}.tmp"
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(content: bytes, path: StrPath) -> None:
    """Write a file, all of it or nothing."""
    with replacing(path) as temporary, open(temporary, "xb") as file:
        file.write(content)


def write_text(text: str, path: StrPath) -> None:
    """Write a file as UTF-8, all of it or nothing; its line ends stay as they are."""
    write_bytes(text.encode("utf-8", "surrogateescape"), path)


def unreadable(path: StrPath, error: OSError | ValueError) -> UserError:
    """The sentence for a file that cannot be read; ValueError is a name that no file can have."""
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    reason = "no such file" if isinstance(error, FileNotFoundError) else reason
    return UserError(f"{path}: {reason}; name a file that can be read")
