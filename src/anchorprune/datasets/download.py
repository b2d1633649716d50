"""One file from the web, kept on disk: whole, still what the server has, and gone on with where it was cut off.

Beside each file lies a record of what the server said of it (its ETag, date and length). Once a process the server is
asked whether that still holds; what it said nothing of is fetched anew. That a file is not there is remembered for
the time without a network only.
"""

from __future__ import annotations

import json
import math
import os
import re
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

from anchorprune.datasets.images import one_line
from anchorprune.errors import UserError
from anchorprune.progress import as_told

MAX_TEXT = 1 << 26  # bytes of class names, prompts and counts
MAX_TAR = 1 << 36
_TIMEOUT = 60.0  # seconds for an answer to begin, and without a byte of it
_SLOWEST = 4096  # bytes a second, on average, after that time
_CHUNK = 1 << 20  # bytes
_MOST_RECORD = 1 << 16
_MARKS = ("ETag", "Last-Modified", "Content-Length")  # by which two versions of a file are told apart
T = TypeVar("T")

_ASKED: set[Path] = set()  # of which the server has said in this process that they are what it has
_UNREACHED: dict[str, float] = {}  # when servers did not answer


class _Unreached(Exception):
    """No network, no server, or one that is out of order; `said` is what to say where nothing is kept."""

    def __init__(self, said: UserError, reason: str) -> None:
        super().__init__(reason)
        self.said = said


def kept(url: str, path: Path, most: int) -> Path | None:
    """`path` with what `url` gives, `most` bytes at most; None where the server has no such file.

    Without an answer of the server, what is there of an earlier time is taken, and a warning says so.

    Raises:
        UserError: it cannot be had, naming the URL.
        OSError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _record_of(path).open("a+", encoding="utf-8")
    except OSError:
        if path.is_file():  # a cache of somebody else's
            return path
        raise
    with file:
        _lock(file)
        if path in _ASKED and path.is_file():
            return path
        record, server = _Record(file), "/".join(url.split("/")[:3])
        known = record.read()
        there = path if path.is_file() else None
        if (there or known.get("absent")) and time.monotonic() - _UNREACHED.get(server, -math.inf) < _TIMEOUT:
            return there
        try:
            if known.get("marks") and _is_current(url, path, known):
                _ASKED.add(path)
                return path
            if known.get("absent") and _head(url) is None:
                return None
            return path if _download(url, path, most, record) else None
        except _Unreached as err:
            if not known.get("absent") and there is None:
                raise err.said from err.__cause__
            if server not in _UNREACHED:
                said = f"{server} does not answer ({err}): taking what was downloaded before, which may be out of date"
                warnings.warn(said, stacklevel=2)
            _UNREACHED[server] = time.monotonic()
            return there


class _Record:
    """What is known of a file, in a file that is locked meanwhile: written in place, since a rename would lose that."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def read(self) -> dict[str, Any]:
        self._file.seek(0)
        try:
            content = json.loads(self._file.read(_MOST_RECORD))
        except (ValueError, RecursionError):  # of a process that was killed, or empty
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, **content: Any) -> None:
        self._file.truncate(0)
        self._file.write(json.dumps(content))
        self._file.flush()


def _record_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _is_current(url: str, path: Path, known: dict[str, Any]) -> bool:
    """Whether the file is as long as it was when it was whole, and the server says of it what it said then."""
    if not path.is_file() or path.stat().st_size != known.get("size"):
        return False
    now, then = _head(url) or {}, known["marks"]
    if "ETag" in now and "ETag" in then:
        return now["ETag"] == str(then["ETag"])
    shared = now.keys() & then.keys()
    return "Content-Length" in shared and all(now[name] == then[name] for name in shared)


def _head(url: str) -> dict[str, str] | None:
    """What the server says of the file; None where it has none. A server that knows no HEAD is asked for the file."""
    for method in ("HEAD", "GET"):
        try:
            with _opened(url, method) as answer:
                return _marks(answer)
        except urllib.error.HTTPError as err:
            err.close()
            if err.code in (404, 410):
                return None
            if method == "GET":
                raise _Unreached(_refused(url, err), f"{err.code} {err.reason}") from err
    raise AssertionError


def _marks(answer: Any) -> dict[str, str]:
    """What tells this version of the file from others."""
    return {name: str(value) for name in _MARKS if (value := answer.headers.get(name))}


def _download(url: str, path: Path, most: int, record: _Record) -> bool:
    """False where the server says that there is no such file."""
    part, begun = path.with_name(f".anchorprune-{path.name}.part"), record.read().get("begun") or {}
    size = part.stat().st_size if begun and part.is_file() else 0
    more = {"Range": f"bytes={size}-", "If-Range": begun["ETag"]} if size else {}
    try:
        answer = _opened(url, "GET", more)
    except urllib.error.HTTPError as err:
        err.close()
        if err.code == 416 and more:  # there is no more of it, or it is another
            part.unlink()
            return _download(url, path, most, record)
        if err.code not in (404, 410):
            raise _Unreached(_refused(url, err), f"{err.code} {err.reason}") from err
        record.write(url=url, absent=True)
        path.unlink(missing_ok=True)
        return False
    with answer:
        if answer.status == 206 and answer.headers.get("ETag", more.get("If-Range")) != more.get("If-Range"):
            part.unlink()  # the rest of another version
            return _download(url, path, most, record)
        if answer.status != 206 or not answer.headers.get("Content-Range", "").startswith(f"bytes {size}-"):
            size = 0
        marks = begun if size else _marks(answer)
        # of what ends with the connection nobody can say whether it is whole: it is not believed another time
        whole = "Content-Length" in answer.headers or bool(getattr(answer, "chunked", False))
        resumable = marks.get("ETag", "W/").startswith('"')
        record.write(url=url, begun=marks if resumable else None)
        try:
            _write(answer, url, part, size, most)
        except BaseException:
            if not resumable:
                part.unlink(missing_ok=True)
            raise
    with part.open("rb") as file:
        head = file.read(512).lstrip().lower()
        os.fsync(file.fileno())
    if head.startswith((b"<!doctype html", b"<html")):
        part.unlink()
        raise UserError(f"{url}: is a web page instead of a file; check the address, and whether it wants a login.")
    length = part.stat().st_size
    os.replace(part, path)
    record.write(url=url, marks=marks if whole else {}, size=length)
    _ASKED.add(path)
    return True


def _write(answer: Any, url: str, part: Path, size: int, most: int) -> None:
    """Appends the answer to the `size` bytes that are there. UserError unless all of it comes, and in time."""
    length = answer.headers.get("Content-Length", "")
    total = size + int(length[:30]) if length.isdecimal() else None
    if total is not None and total > most:
        raise UserError(f"{url}: has {total:,} bytes, more than are taken of such a file ({most:,}).")
    start = time.monotonic()
    with (
        part.open("r+b" if size else "wb") as out,
        as_told().of(url.rpartition("/")[2], total, done=size, unit="byte", leave=False) as told,
    ):
        out.seek(size)
        while chunk := _chunk(answer, url):
            out.write(chunk)
            told.update(len(chunk))
            got, seconds = out.tell() - size, time.monotonic() - start
            if out.tell() > most:
                raise UserError(f"{url}: has more bytes than are taken of such a file ({most:,}).")
            if seconds > _TIMEOUT and got < _SLOWEST * seconds:
                raise _failed(url, f"{got:,} bytes came in {seconds:.0f} s")
        got = out.tell()
        out.truncate()
    if total is not None and got != total:  # urllib reports no connection that ends early
        raise _failed(url, f"the connection ended after {got} of {total} bytes")


def _chunk(answer: Any, url: str) -> bytes:
    """What has come; to wait for more would be to wait for ever where a byte comes at a time."""
    try:
        return bytes(answer.read1(_CHUNK))
    except (OSError, HTTPException, ValueError) as err:
        raise _failed(url, one_line(err)) from err


class _Redirects(urllib.request.HTTPRedirectHandler):
    """To other addresses of the web only: neither files nor whatever else urllib could open."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        to = headers.get("Location") or ""
        if urlsplit(to).scheme.lower() not in ("", "http", "https"):
            fp.close()
            raise UserError(f"{req.full_url}: the server refers to {to[:100]!r}, which is no address of the web.")
        return super().http_error_302(req, fp, code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302

    def redirect_request(self, req: Any, *args: Any) -> Any:
        request = super().redirect_request(req, *args)
        if request is not None:
            request.method = req.get_method()  # it would ask for the file where only its headers were asked for
        return request


def _opened(url: str, method: str, headers: dict[str, str] | None = None) -> Any:
    """The answer to a request, as soon as its headers are there.

    Raises HTTPError for what the server refuses, UserError for a redirection elsewhere, _Unreached without an answer.
    """
    opener = urllib.request.build_opener(_Redirects)
    try:
        request = urllib.request.Request(
            url, headers={"User-Agent": "anchorprune", "Accept-Encoding": "identity", **(headers or {})}, method=method
        )
        return _in_time(lambda: opener.open(request, timeout=_TIMEOUT))
    except (UserError, urllib.error.HTTPError):
        raise
    except (OSError, HTTPException, ValueError) as err:
        raise _Unreached(_failed(url, one_line(err)), one_line(err)) from err


def _in_time(call: Callable[[], T]) -> T:
    """TimeoutError where it takes too long: a timeout of the socket begins anew with each byte."""
    found: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            found.append(call())
        except BaseException as err:
            failed.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_TIMEOUT)
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer within {_TIMEOUT:g} s")
    return found[0]


def _lock(file: IO[str]) -> None:
    """One process, or thread, at a time: the next one finds the file there."""
    try:
        import fcntl
    except ImportError:  # not there on Windows
        return
    with suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)


def _refused(url: str, err: urllib.error.HTTPError) -> UserError:
    return UserError(f"{url}: the server answered {err.code} {err.reason}; check the address.")


def _failed(url: str, reason: str) -> UserError:
    return UserError(f"{url}: could not be downloaded ({reason}); check the address and the network.")


def folder_of(url: str) -> str:
    """A name of a file or folder for what comes from `url`: some of it to be read, and a digest of all of it."""
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", url.split("://", 1)[-1])[-60:].strip("-.")
    return f"{slug}-{sha256(url.encode('utf-8', 'surrogateescape')).hexdigest()}"
