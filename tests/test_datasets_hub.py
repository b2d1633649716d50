"""wds from the Hugging Face hub: by huggingface_hub itself, against a server of this machine with its endpoints."""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from support.material import command, make_wds
from support.opened import opened as opened_by_name

from anchorprune.errors import UserError

COMMITS = {"main": "a" * 40, "v1": "b" * 40, "refs/pr/1": "c" * 40}
PAGE = "https://huggingface.co/datasets/"


class Hub(http.server.BaseHTTPRequestHandler):
    """Of the hub's endpoints those that huggingface_hub asks for a data set's files."""

    folders: dict[str, Path] = {}  # noqa: RUF012  (set by the fixture: commit -> what it holds)
    requests: list[tuple[str, str, str | None]] = []  # noqa: RUF012  (method, path, range; cleared by the fixture)
    cut = 0  # so many bytes of a tar are sent, once, before the connection ends

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        Hub.requests.append((self.command, path, self.headers.get("Range")))
        if path.startswith(("/api/datasets/me/old", "/datasets/me/old")):
            return self.redirect(self.path.replace("me/old", "me/data"))
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/revision/(.+)", path):
            if self.may(match[1], match[2]):
                commit = COMMITS.get(match[2], match[2])
                self.answer(json.dumps({"id": match[1], "sha": commit, "siblings": []}).encode())
            return None
        match = re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/(refs/pr/1|[^/]+)/(.+)", path)
        if match is None:
            return self.refuse(404, "EntryNotFound")
        if self.may(match[1], match[2]):
            commit = COMMITS.get(match[2], match[2])
            file = Hub.folders[commit] / match[3]
            if not file.is_file():
                return self.refuse(404, "EntryNotFound", commit)
            self.answer(file.read_bytes(), commit)
        return None

    def may(self, repo: str, revision: str) -> bool:
        if repo == "me/gated":
            self.refuse(403, "GatedRepo")
        elif repo == "me/private" and self.headers.get("Authorization") != "Bearer hf_secret":
            self.refuse(401, "RepoNotFound")
        elif repo not in ("me/data", "me/private"):
            self.refuse(404, "RepoNotFound")
        elif revision not in [*COMMITS, *Hub.folders]:
            self.refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def answer(self, data: bytes, commit: str | None = None) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-") or 0)
        self.send_response(206 if start else 200)
        if commit:
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha1(data).hexdigest()}"')
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        rest = data[start:]
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if self.command == "GET":
            if Hub.cut and len(rest) > Hub.cut:
                rest, Hub.cut = rest[: Hub.cut], 0
                self.close_connection = True
            self.wfile.write(rest)

    def redirect(self, to: str) -> None:
        self.send_response(307)
        self.send_header("Location", to)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def refuse(self, status: int, code: str, commit: str | None = None) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        if commit:
            self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of `main` at the hub; nothing is cached yet."""
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "HF_TOKEN"):
        monkeypatch.delenv(proxy, raising=False)
    Hub.folders = {
        COMMITS["main"]: make_wds(tmp_path / "main", [0, 1, 2]),
        COMMITS["v1"]: make_wds(tmp_path / "v1" / "sub", [2, 2]).parent,
        COMMITS["refs/pr/1"]: make_wds(tmp_path / "pr", [1]),
    }
    Hub.requests.clear()
    Hub.cut = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants  # what HF_ENDPOINT and the like are read into when it is imported
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    huggingface_hub.utils._http.close_session()
    try:
        yield tmp_path / "main"
    finally:
        huggingface_hub.utils._http.close_session()
        server.shutdown()
        server.server_close()
        thread.join(5)


def opened(address: str, **options: object):
    return opened_by_name("wds/x", root=PAGE + address, transform=lambda image: image.size, **options)


def test_a_page_of_the_hub_gives_the_data_set_of_the_folder(hub: Path) -> None:
    local = opened_by_name("wds/x", root=str(hub), transform=lambda image: image.size)
    remote = opened("me/data/tree/main")
    assert (remote.keys, remote.targets, remote.classes) == (local.keys, local.targets, local.classes)
    assert remote.items[2] == local.items[2]
    assert opened("me/data").keys == local.keys


def test_a_revision_and_a_folder_in_it_are_taken_by_their_address(hub: Path) -> None:
    assert opened("me/data/tree/v1/sub").targets == [2, 2]
    assert opened("me/data/tree/refs%2Fpr%2F1/").targets == [1]
    assert opened(f"me/data/tree/{COMMITS['main']}").targets == [0, 1, 2]


def test_what_is_cached_is_not_downloaded_again_nor_needs_it_a_network(
    hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened("me/data/tree/main")
    Hub.requests.clear()
    again = opened("me/data/tree/main")
    assert not [path for method, path, _ in Hub.requests if method == "GET" and "/resolve/" in path]
    assert again.keys == first.keys
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.utils._http.close_session()
    Hub.requests.clear()
    assert opened("me/data/tree/main").targets == [0, 1, 2]  # dataset_type.txt, which is not there, included
    assert not Hub.requests
    with pytest.raises(UserError, match=r"cannot be reached, and test/nshards.txt is not in the cache"):
        opened("me/data/tree/v1")


def test_all_files_are_of_one_commit_though_the_branch_moves_on(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Hub.answer

    def answer(self: Hub, data: bytes, commit: str | None = None) -> None:
        read(self, data, commit)
        if self.path.endswith("nshards.txt"):  # somebody pushes after the first file
            monkeypatch.setitem(COMMITS, "main", COMMITS["refs/pr/1"])

    monkeypatch.setattr(Hub, "answer", answer)
    assert opened("me/data/tree/main").targets == [0, 1, 2]


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # it keeps whole ones, of 10 MB
    Hub.cut = 3000
    assert opened("me/data/tree/main").targets == [0, 1, 2]
    assert ("GET", f"/datasets/me/data/resolve/{COMMITS['main']}/test/0.tar", "bytes=3000-") in Hub.requests


def test_a_private_data_set_needs_a_token(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"me/private.*no such data set, or it is private: .*HF_TOKEN"):
        opened("me/private/tree/main")
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert opened("me/private/tree/main").targets == [0, 1, 2]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("me/nothing/tree/main", "the hub has no such data set, or it is private"),
        ("me/gated/tree/main", "asks for its terms to be accepted"),
        ("me/data/tree/v9", "me/data has no branch, tag or commit 'v9'"),
        ("me/data/tree/v1", r"there is no https://huggingface.co/datasets/me/data/resolve/v1/test/nshards.txt"),
        ("me/data/blob/main", "USER/REPO/tree/BRANCH"),
        ("me/..data/tree/main", "Repo id|repo id|Cannot have"),
    ],
)
def test_what_the_hub_has_not_is_one_sentence(hub: Path, address: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        opened(address)
    assert "\n" not in str(caught.value)


def test_a_renamed_data_set_is_read_and_its_new_name_said(hub: Path) -> None:
    with pytest.warns(UserWarning, match=re.escape(f"{PAGE}me/old is called me/data now: change the address")):
        assert opened("me/old/tree/main").targets == [0, 1, 2]


def test_a_cache_folder_is_used_where_one_is_given(hub: Path, tmp_path: Path) -> None:
    opened("me/data/tree/main", cache_dir=str(tmp_path / "mine"))
    assert (tmp_path / "mine" / "datasets--me--data").is_dir()
    assert not (tmp_path / "cache").exists()


def test_the_command_line_says_it_in_one_line_and_exits_with_2(hub: Path) -> None:
    outcome = command("datasets", "check", "wds/x", "--dataset_root", f"{PAGE}me/nothing/tree/main")
    assert (outcome.code, len(outcome.err)) == (2, 1), outcome.err
    outcome = command("datasets", "check", "wds/x", "--dataset_root", f"{PAGE}me/data/tree/main", "--num_workers", 0)
    assert (outcome.code, outcome.out[0]) == (0, "wds/x (test): 3 samples, all can be read")
