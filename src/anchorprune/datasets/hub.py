"""Files of a data set at the Hugging Face hub, by huggingface_hub: its resuming, revisions, tokens and cache."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub
from huggingface_hub import utils as hub

from anchorprune.datasets.images import one_line
from anchorprune.datasets.remote import HUGGING_FACE, Files, check_inside
from anchorprune.errors import FieldError
from anchorprune.reading import path_of

_PAGE = re.compile(r"([^/]+/[^/]+)(?:/tree/([^/]+)(?:/(.+))?)?")
_TIMEOUT = 60  # seconds
# Of whichever HTTP client it uses: the failures of the network, and its own of what the server answered.
_FAILED: tuple[type[BaseException], ...] = (OSError, *hub.HfHubHTTPError.__bases__)

_RENAMED: set[str] = set()  # of which it has been said


class HubFiles(Files):
    """Of a page `…/datasets/USER/REPO[/tree/REVISION[/FOLDER]]`, all of one commit.

    A revision is a branch, a tag or a commit (a slash in it is written %2F); by default `main`.
    """

    def __init__(self, root: str, cache_dir: str | None) -> None:
        """Raises UserError for an address of another form."""
        self.root = root
        page = _PAGE.fullmatch(root.removeprefix(HUGGING_FACE).rstrip("/"))
        if page is None:
            raise FieldError("dataset_root", root, f"must look like {HUGGING_FACE}USER/REPO/tree/BRANCH.")
        self._repo, self._folder = page[1], f"{page[3]}/" if page[3] else ""
        self._revision = unquote(page[2] or "main")
        self._cache = str(path_of(cache_dir)) if cache_dir else None
        self._commit: str | None = None
        self._asked = False

    def where(self, name: str) -> str:
        return f"{HUGGING_FACE}{self._repo}/resolve/{self._revision}/{self._folder}{name}"

    def fetch(self, name: str) -> Path | None:
        check_inside(name)
        file = self._folder + name
        try:
            if not self._asked:
                self._ask()
            return self._fetch(file)
        except hub.GatedRepoError as err:
            fix = "asks for its terms to be accepted: do that on its page, and log in (hf auth login, or HF_TOKEN)"
            raise FieldError("dataset_root", self.root, fix) from err
        except hub.RepositoryNotFoundError as err:
            fix = "the hub has no such data set, or it is private: check it, or log in (hf auth login, or HF_TOKEN)"
            raise FieldError("dataset_root", self.root, fix) from err
        except hub.RevisionNotFoundError as err:
            fix = f"{self._repo} has no branch, tag or commit {self._revision!r}; look at its page"
            raise FieldError("dataset_root", self.root, fix) from err
        except hub.HFValidationError as err:
            raise FieldError("dataset_root", self.root, one_line(err)) from err
        except hub.LocalEntryNotFoundError as err:
            fix = f"the hub cannot be reached, and {file} is not in the cache; check the network and HF_HUB_OFFLINE"
            raise FieldError("dataset_root", self.root, fix) from err
        except _FAILED as err:
            fix = f"{file} could not be downloaded ({one_line(err)}); check the network and the cache"
            raise FieldError("dataset_root", self.root, fix) from err

    def _ask(self) -> None:
        """Says where the data set has another name now: the hub goes on to answer to the old one."""
        self._asked = True
        try:
            info = huggingface_hub.HfApi().dataset_info(self._repo, revision=self._revision, timeout=_TIMEOUT)
        except (hub.RepositoryNotFoundError, hub.RevisionNotFoundError):
            raise
        except _FAILED:
            return  # then what is in the cache is taken
        if info.id and info.id != self._repo and self._repo not in _RENAMED:
            _RENAMED.add(self._repo)
            warnings.warn(f"{HUGGING_FACE}{self._repo} is called {info.id} now: change the address", stacklevel=2)

    def _fetch(self, file: str) -> Path | None:
        where: Any = {"repo_type": "dataset", "revision": self._commit or self._revision, "cache_dir": self._cache}
        known = huggingface_hub.try_to_load_from_cache(self._repo, file, **where)
        absent = known is not None and not isinstance(known, str)  # the commit is known not to have it
        if known is not None and self._commit:
            return None if absent else Path(str(known))
        try:
            path = Path(huggingface_hub.hf_hub_download(self._repo, file, **where))
        except hub.LocalEntryNotFoundError:  # no network
            if absent:
                return None
            raise
        except hub.EntryNotFoundError:
            return None
        if self._commit is None:  # for all other files: half of an older data set fits no newer one
            self._commit = path.parts[path.parts.index("snapshots") + 1]
        return path
