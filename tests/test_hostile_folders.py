"""Folders and tars that were made to hang, to mislead or to lead elsewhere: each is refused, or a bad image."""

from __future__ import annotations

import io
import os
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.opened import opened

from anchorprune.datasets import folder as folders
from anchorprune.datasets.images import BadImage
from anchorprune.datasets.wds import open_wds, samples
from anchorprune.embeddings.files import in_folder
from anchorprune.errors import UserError
from anchorprune.files import folder_stamp


def plain(image: Any) -> Any:
    return image


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        (tmp_path / "photos" / name / "0.png").write_bytes(png())
    return tmp_path / "photos"


# --- folders


@pytest.mark.parametrize("unreadable", ["cat/deep", "cat", "."])
def test_a_folder_that_cannot_be_listed_is_refused_by_name(
    photos: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    (photos / "cat" / "deep").mkdir()
    scandir, closed = os.scandir, photos / unreadable

    def denied(path: Any = ".") -> Any:
        if Path(path) == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    said = rf"^{closed}: cannot be listed \(Permission denied\)"
    with pytest.raises(UserError, match=said):
        opened(f"folder:{photos}", transform=plain)
    with pytest.raises(UserError, match=said):
        folders.open_pictures(f"folder:{photos}", plain)
    with pytest.raises(UserError, match=r"cannot be listed \(\[Errno 13\] Permission denied"):
        in_folder(str(photos))


def test_folders_that_link_to_one_another_are_not_walked_in_every_order(photos: Path) -> None:
    names = [f"f{i}" for i in range(9)]
    for name in names:
        (photos / "cat" / name).mkdir()
    for name in names:
        for other in names:
            (photos / "cat" / name / other).symlink_to(photos / "cat" / other)
    start = time.monotonic()
    with pytest.raises(UserError, match="links"):
        opened(f"folder:{photos}", transform=plain)
    with pytest.raises(UserError, match="links"):
        in_folder(str(photos))
    assert time.monotonic() - start < 20  # all their orders would take hours


@pytest.mark.parametrize("kind", ["a FIFO", "a device", "a link to itself", "a folder", "too large"])
def test_what_is_no_regular_file_is_a_bad_image_at_once(photos: Path, kind: str) -> None:
    file = photos / "cat" / "1.png"
    if kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a device":
        file.symlink_to("/dev/zero")
    elif kind == "a link to itself":
        file.symlink_to(file)
    elif kind == "too large":
        with file.open("wb") as out:
            out.truncate(1 << 40)
    else:
        file.mkdir()
        (file / "2.png").mkdir()
        assert len(opened(f"folder:{photos}", transform=plain)) == 2  # a folder is none, whatever its name
        return
    folder = opened(f"folder:{photos}", transform=plain)
    with pytest.raises(BadImage, match=r"1\.png: "):
        folder.items[1]
    (photos / "t.csv").write_text("image,label\ncat/1.png,cat\n")
    with pytest.raises(BadImage, match=r"1\.png: "):
        opened(f"table:{photos / 't.csv'}", transform=plain).items[0]
    assert folder_stamp(photos)[0] >= 2


@pytest.mark.parametrize("name", ["classnames.txt", "zeroshot_classification_templates.txt"])
@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_texts_beside_images_are_regular_files(photos: Path, name: str, kind: str) -> None:
    if kind == "a FIFO":
        os.mkfifo(photos / name)
    else:
        (photos / name).symlink_to("/dev/zero")
    with pytest.raises(UserError, match=rf"{name}: cannot be read as UTF-8 text \(is not a regular file\)"):
        opened(f"folder:{photos}", transform=plain)
    (photos / "t.csv").write_text("image,label\ncat/0.png,cat\n")
    with pytest.raises(UserError, match=rf"{name}: cannot be read"):
        opened(f"table:{photos / 't.csv'}", transform=plain)


# --- tars


def write(path: Path, *members: tuple[tarfile.TarInfo | str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for info, data in members:
            if isinstance(info, str):
                info = tarfile.TarInfo(info)
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data) if data else None)
    return path


def header(name: str, kind: bytes, size: int) -> bytes:
    """A tar's header by its specification; a size below zero in base 256."""
    number = b"%011o\0" % size if size >= 0 else (256**12 + size).to_bytes(12, "big")
    block = bytearray(512)
    block[:100] = name.encode().ljust(100, b"\0")
    block[100:124] = b"0000644\0" + b"0000000\0" * 2
    block[124:136] = number
    block[136:148] = b"00000000000\0"
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(**fields: str) -> bytes:
    content = b""
    for name, value in fields.items():
        body = f" {name}={value}\n".encode()
        length = len(body)
        while len(str(length)) + len(body) != length:
            length = len(str(length)) + len(body)
        content += str(length).encode() + body
    return header("PaxHeader", b"x", len(content)) + content.ljust(-(-len(content) // 512) * 512, b"\0")


def link(name: str, kind: bytes, target: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


PNG = header("a.png", b"0", len(png())) + png().ljust(512, b"\0")
CLS = header("a.cls", b"0", 1) + b"0".ljust(512, b"\0")
END = bytes(1024)

HOSTILE = {
    "a size below zero": header("a.png", b"0", -1024) + CLS + END,
    "a pax size below zero": PNG + pax(size="-3072") + header("a.cls", b"0", 1) + bytes(512) + END,
    "a pax size that is huge": pax(size="9" * 30) + PNG + CLS + END,
    "a pax size with 5,000 digits": pax(size="9" * 5000) + PNG + CLS + END,
    "a pax header below zero": PNG + header("PaxHeader", b"x", -512) + CLS + END,
    "a pax header of 1 GiB": PNG + header("PaxHeader", b"x", 1 << 30) + CLS + END,
    "a name of 1 GiB": PNG + header("././@LongLink", b"L", 1 << 30) + CLS + END,
    "a chain of 10,000 pax headers": pax(comment="x") * 10_000 + PNG + CLS + END,
    "a chain of 10,000 names": (header("././@LongLink", b"L", 512) + b"n".ljust(512, b"\0")) * 10_000 + PNG + END,
    "a folder whose size leads back": PNG + header("d/", b"5", 0) + pax(size="-4096") + header("d/", b"7", -4096) + END,
    "a sparse member": PNG + header("a.cls", b"S", 1) + b"0".ljust(512, b"\0") + END,
    "a sparse member by pax": pax(**{"GNU.sparse.map": "0,1", "GNU.sparse.size": "1048576"}) + PNG + CLS + END,
    "a member that is longer than the tar": PNG + header("a.cls", b"0", 1 << 40),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_header_is_one_sentence_and_soon(tmp_path: Path, how: str) -> None:
    (tmp_path / "test").mkdir()
    tar = tmp_path / "test" / "0.tar"
    tar.write_bytes(HOSTILE[how])
    (tmp_path / "test" / "nshards.txt").write_text("1")
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"^{tar}: "):
        open_wds("wds/x", root=str(tmp_path), split="test", transform=plain, cache_dir=None)
    with pytest.raises(UserError, match=rf"^{tar}: "):
        list(samples(tar))
    assert time.monotonic() - start < 10


def test_the_tar_that_they_were_made_of_is_read(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(pax(comment="x", mtime="1.5") + PNG + CLS + END)
    assert [key for key, _ in samples(tmp_path / "0.tar")] == ["a"]


def test_one_key_twice_in_a_tar_is_refused(tmp_path: Path) -> None:
    members: list[tuple[tarfile.TarInfo | str, bytes]] = [
        (f"{key}.{ending}", data) for key in ("a", "b", "a") for ending, data in (("png", png()), ("cls", b"0"))
    ]
    write(tmp_path / "test" / "0.tar", *members)
    (tmp_path / "test" / "nshards.txt").write_text("1")
    with pytest.raises(UserError, match=r"0.tar: sample 'a' is there twice"):
        open_wds("wds/x", root=str(tmp_path), split="test", transform=plain, cache_dir=None)


def test_links_and_devices_in_a_tar_are_neither_followed_nor_made(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    tar = write(
        tmp_path / "0.tar",
        (link("a.png", tarfile.SYMTYPE, str(tmp_path / "secret.png")), b""),
        (link("b.png", tarfile.LNKTYPE, "secret.png"), b""),
        (link("c.png", tarfile.FIFOTYPE, ""), b""),
        (link("d.png", tarfile.CHRTYPE, ""), b""),
        ("../../e.png", png()),
    )
    assert [key for key, _ in samples(tar)] == ["../../e"]  # a key and no path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.tar", "secret.png"]
