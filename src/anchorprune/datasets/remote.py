"""Files of a data set by name: from a folder, the Hugging Face hub, or the web (downloaded once, kept in a cache)."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from abc import ABC, abstractmethod
from http.client import HTTPException
from pathlib import Path
from typing import IO

from anchorprune.datasets.images import one_line
from anchorprune.errors import FieldError, UserError
from anchorprune.files import read_text, replacing, user_cache
from anchorprune.progress import as_told
from anchorprune.reading import path_of

_TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 20  # bytes
HUGGING_FACE = "https://huggingface.co/datasets/"


class Files(ABC):
    """The files of one data set root: `fetch` gives a local path for each.

    Attributes:
        root: as the user typed it.
        folder: where that is a folder.
    """

    root: str
    folder: Path | None = None

    @abstractmethod
    def where(self, name: str) -> str:
        """The path or URL of file `name`, for messages."""

    @abstractmethod
    def fetch(self, name: str) -> Path | None:
        """A local path for file `name` (with `/`, below the root); None where there is no such file.

        Raises UserError, naming the URL, where the network or the server fails.
        """

    def read_text(self, name: str) -> str | None:
        """The text of file `name`, or None where there is no such file. Raises UserError if it is not UTF-8."""
        path = self.fetch(name)
        if path is None:
            return None
        try:
            return read_text(path)
        except (OSError, ValueError) as err:
            raise UserError(f"{self.where(name)}: cannot be read as UTF-8 text ({one_line(err)}).") from err


def is_url(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def files_at(root: str, cache_dir: str | None) -> Files:
    """Those of a folder, of a data set's page at the hub, or of another http(s) URL.

    What is downloaded goes to `cache_dir`; by default to the user's cache, or Hugging Face's.
    """
    if root.startswith(HUGGING_FACE):
        from anchorprune.datasets.hub import HubFiles

        return HubFiles(root, cache_dir)
    return WebFiles(root, cache_dir) if is_url(root) else LocalFiles(root)


class LocalFiles(Files):
    """Of a folder."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.folder: Path = path_of(root)

    def where(self, name: str) -> str:
        return str(self.folder / name)

    def fetch(self, name: str) -> Path | None:
        path = self.folder / name
        return path if path.is_file() else None


class WebFiles(Files):
    """Of a web server."""

    def __init__(self, root: str, cache_dir: str | None) -> None:
        self.root = root
        self._url = root.rstrip("/")
        # the hash keeps roots apart whose readable part is the same
        slug = re.sub(r"[^A-Za-z0-9.-]+", "-", self._url.split("://", 1)[1])[-60:].strip("-.")
        mark = hashlib.blake2b(self._url.encode(), digest_size=4).hexdigest()
        self._cache = path_of(cache_dir or user_cache() / "wds") / f"{slug}-{mark}"

    def where(self, name: str) -> str:
        return f"{self._url}/{name}"

    def fetch(self, name: str) -> Path | None:
        path = self._cache / name
        # An absent optional file is remembered, so that a cached data set needs no network.
        absent = path.with_name(path.name + ".absent")
        if path.is_file():
            return path
        if absent.exists():
            return None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            found = download(self.where(name), path)
            if not found and name.count("/") == 0:
                absent.touch()
        except OSError as err:
            raise FieldError("wds_cache_dir", self._cache, f"cannot be written ({one_line(err)}).") from err
        return path if found else None


def download(url: str, path: Path) -> bool:
    """Puts what `url` gives at `path`, whole or not at all; False where the server says 404.

    Raises UserError, naming the URL, for every other failure to get it, and OSError for one to write it.
    """
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "anchorprune"})
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as err:
        err.close()
        if err.code == 404:
            return False
        raise UserError(f"{url}: the server answered {err.code} {err.reason}; check the address.") from err
    except (OSError, HTTPException, ValueError) as err:
        raise _failed(url, one_line(err)) from err
    length = answer.headers.get("Content-Length")
    total = int(length) if length else None
    with replacing(path) as unfinished:
        with (
            answer,
            unfinished.open("wb") as out,
            as_told().of(path.name, total, unit="byte", leave=False) as told,
        ):
            while chunk := _read(answer, url):
                out.write(chunk)
                told.update(len(chunk))
            size = out.tell()
        if total is not None and size != total:  # urllib reports no connection that ends early
            raise _failed(url, f"the connection ended after {size} of {total} bytes")
    return True


def _read(answer: IO[bytes], url: str) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, HTTPException) as err:
        raise _failed(url, one_line(err)) from err


def _failed(url: str, reason: str) -> UserError:
    return UserError(f"{url}: could not be downloaded ({reason}); check the address and the network.")
