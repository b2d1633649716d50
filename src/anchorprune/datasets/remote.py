"""Files of a data set by name: from a folder, the Hugging Face hub, or the web (downloaded once, kept in a cache)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from pathlib import Path

from anchorprune.datasets.download import MAX_TAR, MAX_TEXT, folder_of, kept
from anchorprune.datasets.images import one_line
from anchorprune.errors import FieldError, UserError
from anchorprune.files import read_text, user_cache
from anchorprune.reading import path_of

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


def check_inside(name: str) -> None:
    """UserError for the name of a file that is not below its root, or could be taken for another's."""
    if any(part in ("", ".", "..") for part in re.split(r"[/\\]", name)) or "\0" in name:
        split = name.rpartition("/")[0]
        raise FieldError("split", split, "is no name of a folder of the data set; give one without '..' and '//'")


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
        self._cache = path_of(cache_dir or user_cache() / "wds") / folder_of(self._url)

    def where(self, name: str) -> str:
        return f"{self._url}/{name}"

    def fetch(self, name: str) -> Path | None:
        check_inside(name)
        try:
            return kept(self.where(name), self._cache / name, MAX_TAR if name.endswith(".tar") else MAX_TEXT)
        except OSError as err:
            raise FieldError("wds_cache_dir", self._cache, f"cannot be written ({one_line(err)}).") from err
