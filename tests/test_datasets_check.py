"""`anchorprune datasets`: the list of all data sets, and whether every sample of one can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from support.material import command, make_folder, make_wds, picture

from anchorprune.datasets import names


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes with 1, 2 and 2 images, one of the last a damaged one."""
    folder = make_folder(tmp_path / "photos", classes=3, per_class=2)
    (folder / "thing_0" / "1.png").unlink()
    picture(1, size=50).resize((40, 50)).save(folder / "thing_1" / "0.png")
    (folder / "thing_2" / "1.png").write_bytes((folder / "thing_2" / "1.png").read_bytes()[:200])
    return folder


@pytest.mark.parametrize("workers", [0, 2])
def test_a_check_reads_every_sample_and_exits_with_1_where_one_is_bad(photos: Path, workers: int) -> None:
    outcome = command("datasets", "check", f"folder:{photos}", "--num_workers", workers)
    assert (outcome.code, outcome.err) == (1, [])
    first, classes, images, bad = outcome.out
    assert first == f"folder:{photos} (test): 5 samples, 1 of them cannot be read"
    assert classes == "  classes: 3, 1 to 2 samples in each (fewest 'thing 0', most 'thing 1')"
    assert images == "  images: 32 to 40 px wide, 32 to 50 px high"
    assert bad.startswith(f"  bad: thing_2/1.png: {photos}/thing_2/1.png: ")
    (photos / "thing_2" / "1.png").unlink()
    assert command("datasets", "check", f"folder:{photos}", "--num_workers", workers).code == 0


def test_a_check_as_json_says_the_same(photos: Path, tmp_path: Path) -> None:
    outcome = command("datasets", "check", f"folder:{photos}", "--num_workers", 0, "--format", "json")
    [report] = json.loads("\n".join(outcome.out))
    assert outcome.code == 1
    assert report["samples"] == 5
    assert report["per_class"] == {"thing 0": 1, "thing 1": 2, "thing 2": 1}
    assert [bad["key"] for bad in report["bad"]] == ["thing_2/1.png"]
    assert (report["width"], report["height"]) == ([32, 40], [32, 50])


def test_several_data_sets_are_checked_and_empty_classes_named(tmp_path: Path) -> None:
    make_wds(tmp_path / "wds-a", [0, 0, 2])
    make_wds(tmp_path / "wds-b", [[1, 0, 1], [1, 0, 0]])
    (tmp_path / "list.txt").write_text("wds/a\nwds/b\n")
    root = ["--dataset_root", tmp_path / "wds-{dataset}", "--num_workers", 0]
    outcome = command("datasets", "check", tmp_path / "list.txt", *root)
    assert outcome.code == 0
    assert (
        outcome.out[1] == "  classes: 3, 0 to 2 samples in each (fewest 'thing 1', most 'thing 0'); none of 'thing 1'"
    )
    assert (
        outcome.out[4] == "  classes: 3, 0 to 2 samples in each (fewest 'thing 1', most 'thing 0'); none of 'thing 1'"
    )
    (tmp_path / "wds-b" / "test" / "0.tar").unlink()
    outcome = command("datasets", "check", "wds/a", "wds/b", *root)
    assert (outcome.code, outcome.out, len(outcome.err)) == (2, [], 1)


def test_captions_are_counted(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    (tmp_path / "t.csv").write_text("image,caption\na.png,one\na.png,two\nb.png,three\n")
    outcome = command("datasets", "check", f"table:{tmp_path / 't.csv'}", "--num_workers", 0)
    assert outcome.code == 0
    assert outcome.out[1] == "  captions: 1 to 2 a sample"


def test_the_list_has_every_name_that_eval_takes() -> None:
    outcome = command("datasets", "--format", "json")
    listed = {entry["name"]: entry for entry in json.loads("\n".join(outcome.out))}
    assert outcome.code == 0
    assert set(names.known_names()) <= set(listed)
    assert {"wds/NAME", "folder:PATH", "table:FILE", "tfds/NAME"} <= set(listed)
    assert listed["flickr8k"]["task"] == "zeroshot_retrieval"
    assert listed["bundled"]["samples"] == {"test": 400}
    assert listed["cifar10"]["samples"] == {}  # nobody states it
    text = command("datasets").out
    assert len(text) == len(listed) + 1
    assert text[0].split() == ["data", "set", "task", "samples", "from"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["check"], "name the data sets to check"),
        (["check", "bundled", "--task", "retrieval"], "argument --task: invalid choice: 'retrieval'"),
        (["list", "cifar10"], "did you mean datasets check cifar10?"),
        (["--split", "train", "-r", "root2"], "takes no --dataset_root, --split; datasets check does"),
        (["check", "folder:nowhere"], "--dataset folder:nowhere: no such folder"),
        (["check", "bundled", "--num_workers", "-1"], "--num_workers -1: must be 0"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(words: list[str], reason: str) -> None:
    outcome = command("datasets", *words)
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert reason in outcome.err[0]
