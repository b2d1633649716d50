"""Files of a data set by name, from a folder or from the web (downloaded once, kept in a cache folder)."""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO

from anchorprune.datasets.images import one_line
from anchorprune.errors import FieldError, UserError
from anchorprune.files import replacing, user_cache

_TIMEOUT = 60  # seconds without a byte
_CHUNK = 1 << 20  # bytes
_HUGGING_FACE = "https://huggingface.co/datasets/"


def is_url(root: str) -> bool:
    return root.startswith(("http://", "https://"))


def web_folders(root: str) -> tuple[str, str]:
    """(URL of the text files, URL of the tars) for a root URL, neither ending in a slash.

    They differ for the page of a Hugging Face data set, `…/datasets/USER/REPO[/tree/BRANCH[/FOLDER]]`: text files
    are under `raw/`, large files under `resolve/`. The branch defaults to `main`.

    Raises UserError for a Hugging Face address of another form.
    """
    root = root.rstrip("/")
    if not root.startswith(_HUGGING_FACE):
        return root, root
    page = re.fullmatch(r"([^/]+/[^/]+)(?:/tree/(.+))?", root.removeprefix(_HUGGING_FACE))
    if page is None:
        raise FieldError("dataset_root", root, f"must look like {_HUGGING_FACE}USER/REPO/tree/BRANCH.")
    repo, branch = page[1], page[2] or "main"
    return f"{_HUGGING_FACE}{repo}/raw/{branch}", f"{_HUGGING_FACE}{repo}/resolve/{branch}"


class Files:
    """The files of one data set root: `fetch` gives a local path for each."""

    def __init__(self, root: str, cache_dir: str | None) -> None:
        """`root` is a folder, or an http(s) URL whose files go to `cache_dir` (default: the user's cache)."""
        self.root = root
        self.folder: Path | None = None if is_url(root) else Path(root).expanduser()
        if self.folder is None:
            self._text, self._tars = web_folders(root)
            # the hash keeps roots apart whose readable part is the same
            slug = re.sub(r"[^A-Za-z0-9.-]+", "-", self._text.split("://", 1)[1])[-60:].strip("-.")
            mark = hashlib.blake2b(self._text.encode(), digest_size=4).hexdigest()
            self._cache = Path(cache_dir or user_cache() / "wds").expanduser() / f"{slug}-{mark}"

    def where(self, name: str) -> str:
        """The path or URL of file `name`, for messages."""
        if self.folder is not None:
            return str(self.folder / name)
        return f"{self._tars if name.endswith('.tar') else self._text}/{name}"

    def fetch(self, name: str) -> Path | None:
        """A local path for file `name` (with `/`, below the root); None where there is no such file.

        Raises UserError, naming the URL, where the network or the server fails.
        """
        if self.folder is not None:
            path = self.folder / name
            return path if path.is_file() else None
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

    def read_text(self, name: str) -> str | None:
        """The text of file `name`, or None where there is no such file. Raises UserError if it is not UTF-8."""
        path = self.fetch(name)
        if path is None:
            return None
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as err:
            raise UserError(f"{self.where(name)}: cannot be read as UTF-8 text ({one_line(err)}).") from err


def download(url: str, path: Path) -> bool:
    """Puts what `url` gives at `path`, whole or not at all; False where the server says 404.

    Raises UserError, naming the URL, for every other failure to get it, and OSError for one to write it.
    """
    from tqdm import tqdm

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
            tqdm(total=total, desc=path.name, unit="B", unit_scale=True, leave=False, disable=None) as bar,
        ):
            while chunk := _read(answer, url):
                out.write(chunk)
                bar.update(len(chunk))
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
