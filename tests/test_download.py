"""What comes from the web is whole, what the server has today, and stays where it belongs."""

from __future__ import annotations

import contextlib
import http.server
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.disk import room_for

from anchorprune.datasets import DataSpec, download, open_dataset
from anchorprune.datasets.download import folder_of, kept
from anchorprune.datasets.remote import WebFiles
from anchorprune.errors import FieldError, UserError

TEXT = b"cat\ndog\nsea lion\n"


@dataclass
class Site:
    """A web server whose one file is what `answer` writes.

    Attributes:
        asked: method, path and `Range` of each request.
    """

    answer: Callable[[http.server.BaseHTTPRequestHandler], None]
    url: str = ""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)


def whole(body: bytes = TEXT, etag: str | None = '"1"', status: int = 200, **headers: str) -> Callable[..., None]:
    """An answer as servers give it."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **({"ETag": etag} if etag else {}), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body)

    return answer


def cut(body: bytes, at: int, etag: str | None = '"1"') -> Callable[..., None]:
    """The same; the connection ends after `at` bytes of what is asked for, `Range` or not."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        asked = handler.headers.get("Range", "")
        start = int(asked[6:-1]) if asked and handler.headers.get("If-Range") == etag else 0
        handler.send_response(206 if start else 200)
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        handler.send_header("Content-Length", str(len(body) - start))
        if etag:
            handler.send_header("ETag", etag)
        handler.end_headers()
        if handler.command == "GET":
            handler.wfile.write(body[start : start + at])

    return answer


def endless(first: bytes = b"", seconds: float = 0.01, **headers: str) -> Callable[..., None]:
    """A byte at a time, without end."""

    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(first)
        for _ in range(1000):
            handler.wfile.write(b"x")
            time.sleep(seconds)

    return answer


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    found = Site(whole())

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found.asked.append((self.command, self.path, self.headers.get("Range")))
            with contextlib.suppress(OSError):  # the client has enough
                found.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        found.url = f"http://127.0.0.1:{server.server_port}"
        yield found
        server.shutdown()


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what a process knows of servers."""

    def forget() -> None:
        monkeypatch.setattr(download, "_ASKED", set())
        monkeypatch.setattr(download, "_UNREACHED", {})

    forget()
    return forget


def got(site: Site, cache: Path, most: int = 1000) -> bytes | None:
    path = kept(f"{site.url}/classnames.txt", cache / "classnames.txt", most)
    return None if path is None else path.read_bytes()


# --- what is kept is what the server has


def test_what_the_server_still_has_is_not_fetched_again(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    for _ in range(3):
        assert got(site, tmp_path) == TEXT
    another_process()
    assert got(site, tmp_path) == TEXT
    assert [method for method, *_ in site.asked] == ["GET", "HEAD"]


@pytest.mark.parametrize("etag", ['"2"', None])
def test_what_has_changed_is_fetched_anew(
    site: Site, tmp_path: Path, another_process: Callable[[], None], etag: str | None
) -> None:
    assert got(site, tmp_path) == TEXT
    site.answer = whole(b"cat\ndog\n", etag)
    another_process()
    assert got(site, tmp_path) == b"cat\ndog\n"


def test_a_text_that_was_cut_short_without_a_length_is_not_believed_for_ever(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    def unmarked(handler: http.server.BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("ETag", '"1"')
        handler.end_headers()
        handler.wfile.write(TEXT[:7])

    site.answer = unmarked
    got(site, tmp_path)
    site.answer = whole()
    another_process()
    assert got(site, tmp_path) == TEXT


def test_a_file_that_was_missing_once_is_asked_for_again(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    site.answer = whole(b"", status=404)
    assert got(site, tmp_path) is None
    assert got(site, tmp_path) is None
    site.answer = whole()
    assert got(site, tmp_path) == TEXT


def test_a_file_that_is_gone_is_gone(site: Site, tmp_path: Path, another_process: Callable[[], None]) -> None:
    assert got(site, tmp_path) == TEXT
    site.answer = whole(b"", status=404)
    another_process()
    assert got(site, tmp_path) is None


@pytest.mark.parametrize("body", [b"<!DOCTYPE html><p>1</p>", b"\n <html><body>Log in</body></html>"])
def test_a_web_page_in_place_of_a_file_is_refused_and_not_kept(
    site: Site, tmp_path: Path, another_process: Callable[[], None], body: bytes
) -> None:
    site.answer = whole(body)
    with pytest.raises(UserError, match=r"/classnames.txt: is a web page"):
        got(site, tmp_path)
    site.answer = whole()
    assert got(site, tmp_path) == TEXT


@pytest.mark.parametrize("broken", ["no server", "out of order"])
def test_without_an_answer_what_is_there_is_taken_and_said(
    site: Site, tmp_path: Path, another_process: Callable[[], None], broken: str
) -> None:
    assert got(site, tmp_path) == TEXT
    another_process()
    if broken == "no server":
        site.url, before = "http://127.0.0.1:1", site.url
        said = r"http://127.0.0.1:1 does not answer \(.*refused.*\): taking what was downloaded before"
    else:
        site.answer, before = whole(b"", status=503), site.url
        said = r"does not answer \(503 Service Unavailable\)"
    with pytest.warns(UserWarning, match=said):
        assert got(site, tmp_path) == TEXT
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert got(site, tmp_path) == TEXT  # said once
    with pytest.raises(UserError, match=r"could not be downloaded|the server answered 503"):
        kept(f"{site.url}/other.txt", tmp_path / "other.txt", 1000)
    assert before


def test_a_damaged_copy_is_fetched_anew(site: Site, tmp_path: Path, another_process: Callable[[], None]) -> None:
    assert got(site, tmp_path) == TEXT
    (tmp_path / "classnames.txt").write_bytes(TEXT[:4])
    another_process()
    assert got(site, tmp_path) == TEXT
    (tmp_path / ".classnames.txt.json").write_text('{"marks": ')  # a process was killed
    another_process()
    assert got(site, tmp_path) == TEXT


# --- whole, in time, and not more than can be


def test_a_download_that_was_cut_off_goes_on_where_it_was(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    body = bytes(range(250)) * 3
    site.answer = cut(body, 300)
    for _ in range(2):
        with pytest.raises(UserError, match=r"the connection ended after \d+ of 750 bytes"):
            got(site, tmp_path)
    assert got(site, tmp_path) == body
    assert [asked for *_, asked in site.asked] == [None, "bytes=300-", "bytes=600-"]
    assert {path.name for path in tmp_path.iterdir()} == {"classnames.txt", ".classnames.txt.json"}


def test_what_has_changed_meanwhile_is_not_put_to_the_half_of_the_old_one(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    site.answer = cut(b"a" * 750, 300)
    with pytest.raises(UserError, match="the connection ended"):
        got(site, tmp_path)
    site.answer = cut(b"b" * 750, 1000, '"2"')
    assert got(site, tmp_path) == b"b" * 750


def test_a_full_disk_is_one_sentence_and_what_is_there_is_gone_on_with(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    site.answer = cut(LONG := TEXT * 1000, 1 << 20)
    files = WebFiles(site.url, str(tmp_path))
    with room_for(1000), pytest.raises(FieldError, match=r"wds_cache_dir=.*: cannot be written \(.*File too large\)"):
        files.fetch("0.tar")
    assert not list(tmp_path.rglob("0.tar"))
    another_process()
    path = files.fetch("0.tar")
    assert path is not None
    assert path.read_bytes() == LONG
    assert not list(tmp_path.rglob("*.part"))


def test_without_a_mark_nothing_of_half_a_file_stays(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    site.answer = cut(b"a" * 750, 300, None)
    with pytest.raises(UserError, match="the connection ended after 300 of 750 bytes"):
        got(site, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".classnames.txt.json"]


@pytest.mark.parametrize("how", ["in the file", "in its headers"])
def test_a_byte_at_a_time_is_not_waited_for(
    site: Site, tmp_path: Path, another_process: Callable[[], None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(download, "_TIMEOUT", 0.3)
    site.answer = endless() if how == "in the file" else _slow_headers
    start = time.monotonic()
    with pytest.raises(UserError, match=r"could not be downloaded \((\d+ bytes came in|no answer within 0.3 s)"):
        got(site, tmp_path, 1 << 40)
    assert time.monotonic() - start < 5


def _slow_headers(handler: http.server.BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for i in range(1000):
        handler.wfile.write(b"X-%d: x\r\n" % i)
        time.sleep(0.01)


@pytest.mark.parametrize("answer", [whole(b"x" * 1001), endless(b"x" * 1001), endless(Content_Length="9" * 30)])
def test_more_than_such_a_file_can_have_is_not_taken(
    site: Site, tmp_path: Path, another_process: Callable[[], None], answer: Callable[..., None]
) -> None:
    site.answer = answer
    with pytest.raises(UserError, match=r"bytes, more than are taken|has more bytes than are taken|connection ended"):
        got(site, tmp_path)


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:text/plain,1", "gopher://127.0.0.1/"])
def test_a_redirection_to_what_is_no_web_address_is_refused(
    site: Site, tmp_path: Path, another_process: Callable[[], None], to: str
) -> None:
    site.answer = whole(b"", status=302, Location=to)
    with pytest.raises(UserError, match=re.escape(f"refers to {to!r}, which is no address of the web")):
        got(site, tmp_path)


def test_a_redirection_within_the_web_is_followed(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    def moved(handler: http.server.BaseHTTPRequestHandler) -> None:
        there = handler.path == "/there"
        (whole() if there else whole(b"", status=301, Location="/there"))(handler)

    site.answer = moved
    assert got(site, tmp_path) == TEXT
    another_process()
    assert got(site, tmp_path) == TEXT
    assert [asked[:2] for asked in site.asked[2:]] == [("HEAD", "/classnames.txt"), ("HEAD", "/there")]


def test_two_at_once_download_it_once(site: Site, tmp_path: Path, another_process: Callable[[], None]) -> None:
    answer = whole()

    def slow(handler: http.server.BaseHTTPRequestHandler) -> None:
        time.sleep(0.05)
        answer(handler)

    site.answer = slow
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: got(site, tmp_path), range(4))) == [TEXT] * 4
    assert len(site.asked) == 1


def test_a_server_that_knows_no_head_is_asked_for_the_file(
    site: Site, tmp_path: Path, another_process: Callable[[], None]
) -> None:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> None:
        (whole(b"", status=405) if handler.command == "HEAD" else whole())(handler)

    site.answer = answer
    assert got(site, tmp_path) == TEXT
    another_process()
    assert got(site, tmp_path) == TEXT


# --- where it goes


@pytest.mark.parametrize("split", ["../../x", "..", "a/../../x", "/etc", "a//b", "a\\..\\x", "."])
def test_no_split_leads_out_of_the_cache(site: Site, tmp_path: Path, split: str) -> None:
    with pytest.raises(FieldError, match=r"^split="):
        WebFiles(site.url, str(tmp_path / "cache")).fetch(f"{split}/nshards.txt")
    spec = DataSpec(name="wds/x", root=site.url, split=split, cache_dir=str(tmp_path / "cache"))
    with pytest.raises(FieldError, match=r"^split="):
        open_dataset(spec, lambda image: image)
    hub = DataSpec(name="wds/x", root="https://huggingface.co/datasets/a/b", split=split)
    with pytest.raises(FieldError, match=r"^split="):
        open_dataset(hub, lambda image: image)
    assert not site.asked
    assert not list(tmp_path.rglob("nshards.txt"))


def test_addresses_whose_readable_parts_are_equal_have_folders_of_their_own() -> None:
    names = {folder_of(f"http://{host}/data") for host in ("a.b", "a-b", "a_b", "a+b")}
    assert len(names) == 4
    assert all(re.fullmatch(r"[A-Za-z0-9.-]+-[0-9a-f]{64}", name) for name in names)
    assert len(folder_of("http://host/" + "long" * 1000)) < 200
