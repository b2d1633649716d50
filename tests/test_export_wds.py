"""`anchorprune export-wds`: what it writes is read by our reader and by clip-benchmark's with equal samples."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.material import command, make_folder, picture, tree

from anchorprune import locks
from anchorprune.datasets import DataSpec, EvalDataset, open_dataset
from anchorprune.datasets.export import Exported, Layout, encode, export_wds, unchanged
from anchorprune.datasets.sampling import BadImage
from anchorprune.errors import FieldError, UserError

# upstream's reader warns of its own use of webdataset
UPSTREAM = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")


def pixels(image: Image.Image) -> bytes:
    return image.convert("RGB").tobytes()


def exported(name: str, output: Path, task: str = "zeroshot_classification", **fields: Any) -> Exported:
    layout = Layout(**{key: fields.pop(key) for key in ("image_format", "max_count", "max_size") if key in fields})
    spec = DataSpec(name=name, **fields)
    return export_wds(open_dataset(spec, unchanged, task), spec, str(output), layout)


def opened(root: Path, **fields: Any) -> EvalDataset:
    return open_dataset(DataSpec(name="wds/x", root=str(root), **fields), pixels)


def upstreams(root: Path, task: str = "zeroshot_classification") -> Any:
    builder = pytest.importorskip("clip_benchmark.datasets.builder")
    return builder.build_dataset("wds/x", root=str(root), transform=pixels, split="test", task=task)


def members(tar: Path) -> dict[str, bytes]:
    with tarfile.open(tar) as archive:
        return {info.name: archive.extractfile(info).read() for info in archive}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes with an image of each common format."""
    folder = make_folder(tmp_path / "photos", classes=2, per_class=2)
    picture(7).save(folder / "thing_0" / "x.jpg")
    picture(8).convert("L").save(folder / "thing_0" / "y.webp", lossless=True)
    picture(9).save(folder / "thing_1" / "z.bmp")
    (folder / "classnames.txt").write_text("a cat\na dog\n")
    return folder


def captioned(folder: Path) -> str:
    """A table of three images with captions, one with a line break in it."""
    for i in range(3):
        picture(i).save(folder / f"{i}.png")
    rows = [{"image": f"{i}.png", "captions": [f"{i} things", f"they\nare {i}"]} for i in range(3)]
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"table:{folder / 't.jsonl'}"


# --- what is written


@UPSTREAM
def test_both_readers_find_the_samples_of_the_source(photos: Path, tmp_path: Path) -> None:
    source = open_dataset(DataSpec(name=f"folder:{photos}"), pixels)
    exported(f"folder:{photos}", tmp_path / "out")
    ours, theirs = opened(tmp_path / "out"), upstreams(tmp_path / "out")
    expected = [source.items[i] for i in range(7)]
    assert [ours.items[i] for i in range(len(ours))] == expected
    assert list(theirs) == expected
    assert ours.classes == theirs.classes == ["a cat", "a dog"]
    assert ours.templates == theirs.templates == source.templates


def test_the_files_own_bytes_are_kept_where_the_layout_knows_their_format(photos: Path, tmp_path: Path) -> None:
    exported(f"folder:{photos}", tmp_path / "out")
    found = members(tmp_path / "out" / "test" / "0.tar")
    assert found["s0000002.jpg"] == (photos / "thing_0" / "x.jpg").read_bytes()
    assert found["s0000003.webp"] == (photos / "thing_0" / "y.webp").read_bytes()
    assert found["s0000000.png"] == (photos / "thing_0" / "0.png").read_bytes()
    assert pixels(Image.open(io.BytesIO(found["s0000006.webp"]))) == pixels(picture(9))  # the BMP, without loss


@pytest.mark.parametrize(("image_format", "loses"), [("png", False), ("webp", False), ("jpg", True)])
def test_images_are_encoded_anew_only_when_asked(photos: Path, tmp_path: Path, image_format: str, loses: bool) -> None:
    source = open_dataset(DataSpec(name=f"folder:{photos}"), pixels)
    exported(f"folder:{photos}", tmp_path / "out", image_format=image_format)
    ours = opened(tmp_path / "out")
    assert {Path(name).suffix for name in members(tmp_path / "out" / "test" / "0.tar")} == {f".{image_format}", ".cls"}
    assert ([ours.items[i] for i in range(7)] != [source.items[i] for i in range(7)]) == loses


@UPSTREAM
def test_several_labels_an_image_are_vectors_for_both_readers(tmp_path: Path) -> None:
    for i in range(2):
        picture(i).save(tmp_path / f"{i}.png")
    rows = [{"image": "0.png", "labels": ["a", "c"]}, {"image": "1.png", "labels": ["b"]}]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    exported(f"table:{tmp_path / 't.jsonl'}", tmp_path / "out")
    ours, theirs = opened(tmp_path / "out"), list(upstreams(tmp_path / "out"))
    assert (tmp_path / "out" / "dataset_type.txt").read_text() == "multilabel\n"
    assert ours.kind == "labels"
    for i, expected in enumerate([[1, 0, 1], [0, 1, 0]]):
        assert ours.items[i][1].tolist() == theirs[i][1].tolist() == expected
        assert ours.items[i][0] == theirs[i][0]


@UPSTREAM
def test_captions_are_lines_for_both_readers(tmp_path: Path) -> None:
    exported(captioned(tmp_path), tmp_path / "out", "zeroshot_retrieval")
    assert (tmp_path / "out" / "dataset_type.txt").read_text() == "retrieval\n"
    assert not (tmp_path / "out" / "classnames.txt").exists()
    theirs = list(upstreams(tmp_path / "out", "zeroshot_retrieval"))
    assert theirs == [(pixels(picture(i)), [f"{i} things", f"they are {i}"]) for i in range(3)]
    ours = opened(tmp_path / "out")
    assert ours.kind == "captions"
    assert [ours.items[i] for i in range(3)] == theirs


@UPSTREAM
@pytest.mark.parametrize("limits", [{"max_count": 3}, {"max_size": 7000}, {"max_count": 2, "max_size": 3000}, {}])
def test_the_tars_are_cut_and_named_as_upstream_does(tmp_path: Path, limits: dict[str, int], monkeypatch: Any) -> None:
    """Upstream's own export of the same data set: its keys in its tars, and its text files, are ours."""
    writer = pytest.importorskip("clip_benchmark.webdataset_builder")
    folder = make_folder(tmp_path / "photos", classes=2, per_class=4)
    source = open_dataset(DataSpec(name=f"folder:{folder}"), writer.PIL_to_bytes("png"))

    class Pairs:
        classes, templates = source.classes, source.templates

        def __len__(self) -> int:
            return len(source)

        def __getitem__(self, i: int) -> Any:
            if i >= len(source):
                raise IndexError
            return source.items[i]

    with monkeypatch.context() as patch:
        patch.setattr(writer.torch.utils.data, "DataLoader", lambda dataset, **_: dataset)  # not eight processes
        writer.convert_dataset(Pairs(), "test", str(tmp_path / "theirs"), image_format="png", verbose=False, **limits)
    exported(f"folder:{folder}", tmp_path / "ours", image_format="png", **limits)
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "theirs")
    assert set(ours) == {*theirs, "test/export.json"}
    for name, content in theirs.items():
        if name.endswith(".txt"):
            assert ours[name] == content
        elif name.endswith(".tar"):
            assert members(tmp_path / "ours" / name) == members(tmp_path / "theirs" / name)


def test_a_tar_never_exceeds_its_counts(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "photos", classes=1, per_class=5)
    assert exported(f"folder:{folder}", tmp_path / "out", max_count=2).tars == 3
    assert [len(members(tmp_path / "out" / "test" / f"{i}.tar")) for i in range(3)] == [4, 4, 2]


# --- killed, repeated, contradicted


@pytest.mark.parametrize("at", range(7))
def test_an_export_that_was_cut_off_anywhere_goes_on_and_is_the_same(
    photos: Path, tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported(f"folder:{photos}", tmp_path / "whole", max_count=2)
    from anchorprune.datasets.folder import FolderItems

    read = FolderItems.read

    def interrupted(self: FolderItems, index: int) -> bytes:
        if index == at:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(FolderItems, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        exported(f"folder:{photos}", tmp_path / "out", max_count=2)
    assert not (tmp_path / "out" / "test" / "nshards.txt").exists()
    (tmp_path / "out" / "test" / ".anchorprune-0123.tmp").write_bytes(b"of a process that was killed")
    seen = []
    monkeypatch.setattr(FolderItems, "read", lambda self, i: seen.append(i) or read(self, i))
    assert exported(f"folder:{photos}", tmp_path / "out", max_count=2).found == at // 2
    assert seen == list(range(at - at % 2, 7))  # finished tars stay
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


KILLED = """
import os, signal, sys
from anchorprune.commands import main
from anchorprune.datasets.folder import FolderItems
read = FolderItems.read
FolderItems.read = lambda self, i: os.kill(os.getpid(), signal.SIGKILL) if i == 5 else read(self, i)
main(sys.argv[1:])
"""


def test_a_process_that_is_killed_leaves_nothing_that_is_read_as_whole(photos: Path, tmp_path: Path) -> None:
    words = ["export-wds", "-d", f"folder:{photos}", "-o", str(tmp_path / "out"), "--max-count", "2"]
    words += ["--num_workers", "0"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], capture_output=True, timeout=100, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert any(name.endswith(".tmp") for name in os.listdir(tmp_path / "out" / "test"))
    with pytest.raises(UserError, match=r"there is no .*nshards.txt"):
        opened(tmp_path / "out")
    outcome = command(*words)
    assert outcome.code == 0, outcome.err
    assert outcome.out[0] == f"4 tars of folder:{photos} (test) in {tmp_path / 'out'}, 2 of them from before"
    exported(f"folder:{photos}", tmp_path / "whole", max_count=2)
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_the_same_again_changes_nothing(photos: Path, tmp_path: Path) -> None:
    exported(f"folder:{photos}", tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "test").glob("*.tar")}
    assert exported(f"folder:{photos}", tmp_path / "out").found == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "test").glob("*.tar")} == before


def test_another_request_on_the_same_folder_is_refused_with_what_differs(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    exported(f"folder:{photos}", out)
    before = tree(out)
    with pytest.raises(FieldError, match=r"output=.* holds an export with max_count 10000, not 3; "):
        exported(f"folder:{photos}", out, max_count=3)
    with pytest.raises(FieldError, match=r"holds an export with image_format None, not 'png'; "):
        exported(f"folder:{photos}", out, image_format="png")
    with pytest.raises(FieldError, match=r"holds an export with dataset 'folder:.*', not 'bundled'; "):
        exported("bundled", out)
    (photos / "thing_0" / "x.jpg").rename(photos / "thing_0" / "xx.jpg")
    with pytest.raises(FieldError, match=r"holds an export with other samples; "):
        exported(f"folder:{photos}", out)
    assert tree(out) == before


def test_a_folder_of_other_data_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "test").mkdir(parents=True)
    (tmp_path / "out" / "test" / "0.tar").write_bytes(b"")
    with pytest.raises(FieldError, match=r"out/test holds something else"):
        exported(f"folder:{photos}", tmp_path / "out")
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "classnames.txt").write_text("dog\ncat\n")
    with pytest.raises(FieldError, match=r"classnames.txt in it is of other data"):
        exported(f"folder:{photos}", tmp_path / "two")
    with pytest.raises(FieldError, match="output='/dev/null/x': cannot be written"):
        exported(f"folder:{photos}", Path("/dev/null/x"))


def test_what_a_process_left_that_was_killed_as_it_began_is_no_other_thing(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "test").mkdir(parents=True)
    left = tmp_path / "out" / "test" / f".anchorprune-{locks.machine()}-0123456789abcdef.tmp"
    left.write_bytes(b"{")
    exported(f"folder:{photos}", tmp_path / "out")
    assert not left.exists()


def test_another_process_that_writes_there_is_not_disturbed(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    exported(f"folder:{photos}", tmp_path / "out")
    code = (
        "import fcntl, os, sys; file = open(sys.argv[1], 'r+b'); fcntl.lockf(file, fcntl.LOCK_EX); child = os.fork()\n"
        "print('held', flush=True) if child else None; sys.stdin.read() if child else __import__('time').sleep(20)"
    )
    held = [sys.executable, "-c", code, str(tmp_path / "out" / "test" / "export.json")]
    with subprocess.Popen(held, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(FieldError, match="another process writes to"):
            exported(f"folder:{photos}", tmp_path / "out")
        other.kill()
        other.wait()
        exported(f"folder:{photos}", tmp_path / "out")  # though a process that it forked lives on


# --- images and kinds that cannot be written


def test_an_image_that_cannot_be_read_ends_it_or_is_counted(photos: Path, tmp_path: Path) -> None:
    (photos / "thing_1" / "z.bmp").write_bytes(b"no image")
    with pytest.raises(FieldError, match=r"cannot read image thing_1/z.bmp .*; skip_bad_images goes on"):
        exported(f"folder:{photos}", tmp_path / "out")
    done = exported(f"folder:{photos}", tmp_path / "out", skip_bad_images=True)
    assert (done.samples, [key for key, _ in done.bad]) == (7, ["thing_1/z.bmp"])
    assert len(opened(tmp_path / "out")) == 6


def test_an_image_that_a_format_cannot_hold_is_a_bad_image() -> None:
    with pytest.raises(BadImage, match="cannot be written as webp"):
        encode(Image.new("RGB", (16_400, 1)), "webp")


def test_what_the_layout_has_no_place_for_is_refused(tmp_path: Path) -> None:
    choices = EvalDataset("x", [(None, ["a", "b"])], ["0"], None, None, "choices")
    with pytest.raises(FieldError, match="has choices, for which the webdataset layout has no place"):
        export_wds(choices, DataSpec(name="x"), str(tmp_path), Layout())
    arrays = EvalDataset("x", [(np.zeros((3, 8, 8)), 0)], ["0"], ["a"], None)
    with pytest.raises(FieldError, match="its images are ndarray, which no file can hold"):
        export_wds(arrays, DataSpec(name="x"), str(tmp_path), Layout())
    for wrong in ({"image_format": "gif"}, {"max_count": 0}, {"max_size": -1}):
        with pytest.raises(FieldError, match=f"{next(iter(wrong))}="):
            Layout(**wrong)


# --- the command line


@UPSTREAM
def test_a_line_of_upstreams_command_does_what_it_does(tmp_path: Path) -> None:
    name = captioned(tmp_path)
    line = ["-d", name, "-s", "test", "-r", "nowhere", "-o", tmp_path / "out", "--retrieval"]
    line += ["--image-format", "png", "--max-count", 2, "--max-size", 1_000_000]
    outcome = command("export-wds", *line, "--num_workers", 2)
    assert (outcome.code, outcome.err) == (0, [])
    assert outcome.out[0].startswith("2 tars of table:")
    assert len(list(upstreams(tmp_path / "out", "zeroshot_retrieval"))) == 3
    outcome = command("export-wds", "-d", name, "-o", tmp_path / "b", "--multilabel")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert re.search(r"--dataset table:.*: has captions, and --multilabel asks for labels", outcome.err[0])


def test_captions_and_another_task_are_not_asked_for_at_once(tmp_path: Path) -> None:
    line = ["-d", captioned(tmp_path), "-o", tmp_path / "out", "--retrieval", "--task", "zeroshot_classification"]
    outcome = command("export-wds", *line)
    said = "--task zeroshot_classification: contradicts --retrieval, which means zeroshot_retrieval; give one of them"
    assert (outcome.code, outcome.err) == (2, [f"anchorprune: error: {said}"])
    assert not (tmp_path / "out").exists()


def test_workers_write_what_one_process_writes(photos: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        out = tmp_path / str(workers)
        assert command("export-wds", "-d", f"folder:{photos}", "-o", out, "--num_workers", workers).code == 0
    assert tree(tmp_path / "0") == tree(tmp_path / "2")
