"""No output is an input, nor another output, of the same command: told by real path and inode, before the work."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.material import TINY, World, checkpoint, make_folder, picture
from test_cli_errors import refused

from anchorprune.errors import FieldError
from anchorprune.models import open_clip as loading
from anchorprune.outputs import Read, check_apart, check_outputs

pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(autouse=True)
def no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is found before a model is loaded."""
    monkeypatch.setattr(loading, "load", lambda *_, **__: pytest.fail("the model is loaded"))


def same(path: Path) -> Path:
    return path


def linked(path: Path) -> Path:
    Path("linked").symlink_to(path)
    return Path("linked")


def hard(path: Path) -> Path:
    os.link(path, "hard")
    return Path("hard")


def around(path: Path) -> Path:
    return Path(os.pardir, Path.cwd().name, path)


@pytest.mark.parametrize("named", [same, linked, hard, around])
def test_a_file_that_is_read_is_no_output_whatever_it_is_called(named: Callable[[Path], Path]) -> None:
    Path("in.json").write_text("{}")
    with pytest.raises(FieldError, match="is read as pretrained; name another file") as error:
        check_outputs([("output", named(Path("in.json")))], [Read("pretrained", "in.json")])
    assert error.value.as_flag().endswith(": is read as --pretrained; name another file")


@pytest.mark.parametrize("named", [same, linked, hard, around])
def test_two_outputs_are_two_files(named: Callable[[Path], Path]) -> None:
    Path("r.json").write_text("{}")
    with pytest.raises(FieldError, match="is what output writes, too"):
        check_apart([("output", "r.json"), ("save_clf", named(Path("r.json")))])


@pytest.mark.parametrize("named", [same, linked, hard, around])
def test_a_file_in_a_folder_that_is_read_is_no_output(named: Callable[[Path], Path]) -> None:
    make_folder(Path("photos"), classes=1, per_class=1)
    with pytest.raises(FieldError, match="is read as dataset"):
        check_apart([("output", named(Path("photos/thing_0/0.png")))], [Read("dataset", "photos")])


def test_a_new_file_or_an_earlier_result_may_lie_among_what_is_read() -> None:
    make_folder(Path("photos"), classes=1, per_class=1)
    check_outputs([("output", "photos/new.json")], [Read("dataset", "photos")])
    Path("photos/r.json").write_text(json.dumps({"task": "t", "model": "m", "metrics": {}}))
    Path("photos/captions.json").write_text(json.dumps({"images": []}))
    check_outputs([("output", "photos/r.json")], [Read("dataset", "photos")])
    with pytest.raises(FieldError, match="is read as dataset"):
        check_outputs([("output", "photos/captions.json")], [Read("dataset", "photos")])


@pytest.mark.parametrize("output", ["--output", "--save_clf", "--attention_output"])
@pytest.mark.parametrize(
    ("flag", "value", "file"),
    [
        ("--pretrained", "own.pt", "own.pt"),
        ("--custom_classname_file", "names.json", "names.json"),
        ("--custom_template_file", "names.json", "names.json"),
        ("--load_clfs", "clf.pt", "clf.pt"),
        ("--annotation_file", "names.json", "names.json"),
        ("--dataset", "folder:photos", "photos/thing_0/0.png"),
        ("--dataset", "table:rows.csv", "rows.csv"),
        ("--dataset", "table:rows.csv", "beside.png"),
        ("--dataset", "table:rows.csv", "elsewhere/x.png"),
        ("--dataset", "table:rows.csv", "no-ending"),
        ("--dataset", "list.txt", "list.txt"),
        ("--pretrained_model", "models.txt", "models.txt"),
        ("--feature_root", "features", "features"),
    ],
)
def test_no_file_that_eval_reads_is_overwritten(world: World, output: str, flag: str, value: str, file: str) -> None:
    checkpoint(Path("own.pt"))
    torch.save(torch.zeros(16, 3), "clf.pt")
    make_folder(Path("photos"), classes=2, per_class=1)
    picture(0).save("beside.png")
    Path("elsewhere").mkdir()
    for name in ("elsewhere/x.png", "no-ending"):
        picture(0).save(name, "PNG")
    Path("rows.csv").write_text(f"image,label\nbeside.png,a\n{Path.cwd()}/elsewhere/x.png,a\nno-ending,a\n")
    Path("names.json").write_text(json.dumps({"three": ["a", "b", "c"]}))
    Path("list.txt").write_text("wds/three\n")
    Path("models.txt").write_text(f"{TINY},{world.weights}\n")
    flags = [*world.model, *world.three, "--extract_attention", "--output", "r.json", "--attention_output", "a.pt"]
    line = refused("eval", *flags, flag, value, output, file)
    assert line == f"anchorprune: error: {output} {file}: is read as {flag}; name another file"


def test_the_outcomes_are_an_output_as_others_are(world: World) -> None:
    flags = [*world.model, *world.three, "--save_outcomes", "--output", "r.json", "--save_clf"]
    assert "r.outcomes.npz: would be written 2 times" in refused("eval", *flags, "r.outcomes.npz")
    Path("other").symlink_to("r.outcomes.npz")
    assert "would be written 2 times" in refused("eval", *flags, "other")


def test_no_other_command_overwrites_what_it_reads(world: World) -> None:
    for name in ("out/unpruned.json", "out/sweep.csv", "out/tune.csv", "out/speed.json", "out/encode.json"):
        Path(name).parent.mkdir(exist_ok=True)
        checkpoint(Path(name))
    photos = make_folder(Path("photos"), classes=1, per_class=1)
    data, tome = [*world.three, "--num_workers", 0], ["--strategies", "tome --r 2", "--out", "out"]
    lines = [
        refused("sweep", "--model", TINY, "--pretrained", "out/unpruned.json", *data, *tome),
        refused("sweep", *world.model, *data, "--custom_template_file", "out/sweep.csv", *tome),
        refused("tune", "--max_drop", 1, "--model", TINY, "--pretrained", "out/tune.csv", *data, "--out", "out"),
        refused("speed", "--model", TINY, "--pretrained", "out/speed.json", "--out", "out"),
        refused("encode", "--model", TINY, "--pretrained", "out/encode.json", "--input", photos, "--out", "out"),
    ]
    for line in lines:
        assert "--out out/" in line
        assert line.endswith("; name another file")


def test_a_strategys_files_are_read_by_every_command(world: World) -> None:
    names = ("out/report.html", "out/speed.json", "c.safetensors")
    Path("out").mkdir()
    for name in names:
        Path(name).write_bytes(b"of a calibration")
    data, report = [*world.model, *world.three], "out/report.html"
    os.link("c.safetensors", "linked.json")

    def made_of(file: str) -> list[str]:
        return ["--strategies", f"calibrated --calibration {file}", "--out"]

    export = ["export", *world.model, "--strategy", "calibrated", "--calibration", "c.safetensors", "--output"]
    lines = [
        refused("tune", "--max_drop", 1, *data, *made_of(report), "out"),
        refused("speed", *world.model, *made_of("out/speed.json"), "out"),
        refused("calibrate", *data, *made_of("c.safetensors"), "linked.json"),
        refused(*export, "linked.json"),
        refused(*export, "x.onnx", "--text_output", "./linked.json"),
        refused(*export, "x.onnx", "--report", "out/../c.safetensors"),
    ]
    assert [line.split(": ")[-1] for line in lines] == ["is read as --calibration; name another file"] * len(lines)
    assert {Path(name).read_bytes() for name in names} == {b"of a calibration"}


def test_encode_does_not_write_over_its_table(world: World) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    Path("out/embeddings").mkdir(parents=True)
    for name in ("out/failures.parquet", "out/embeddings/00000.parquet"):
        pq.write_table(pa.table({"path": ["a.png"]}), name)
        assert "is read" in refused("encode", *world.model, "--input", name, "--out", "out")
    assert "out/failures.parquet: is read as --input" in refused(
        "encode", *world.model, "--input", "out", "--out", "out"
    )


def test_export_build_and_rerun_write_beside_what_they_read(world: World) -> None:
    checkpoint(Path("own.onnx"))
    export = ["export", "--model", TINY, "--pretrained", "own.onnx", "--strategy", "none"]
    assert "--output own.onnx: is read as --pretrained" in refused(*export, "--output", "own.onnx")
    assert "--report x.onnx: is what --output writes" in refused(*export, "--output", "x.onnx", "--report", "x.onnx")
    assert "--report own.onnx: is read as" in refused(*export, "--output", "x.onnx", "--report", "own.onnx")
    result = {"task": "t", "model": "m", "metrics": {}, "dataset": "d", "pretrained": "p"}
    Path("r.json").write_text(json.dumps(result))
    Path("linked.json").symlink_to("r.json")
    for output in ("r.json", "linked.json"):
        assert "one of the results to be read" in refused("build", "r.json", "--output", output)
    Path("r.outcomes.npz").touch()
    assert "the outcomes of one of the results" in refused("build", "r.json", "--output", "r.outcomes.npz")


def test_a_webdataset_is_not_written_into_what_it_is_made_of() -> None:
    photos = make_folder(Path("photos"), classes=2, per_class=1)
    export = ["export-wds", "--num_workers", 0, "--dataset"]
    for output in ("photos", "./photos"):
        assert "is the folder that is read" in refused(*export, f"folder:{photos}", "--output", output)
    Path("out").mkdir()
    Path("out/classnames.txt").write_text("{}")
    flags = [f"folder:{photos}", "--custom_classname_file", "out/classnames.txt"]
    assert "is read as --custom_classname_file" in refused(*export, *flags, "--output", "out")


def test_class_names_that_are_no_line_of_a_text_are_not_written_as_lines() -> None:
    picture(0).save("a.png")
    for label in ("two\nlines", "two\rlines", "\ufeffmark", "a\0b"):
        rows = [{"image": "a.png", "label": label}]
        Path("t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        line = refused("export-wds", "--num_workers", 0, "--dataset", "table:t.jsonl", "--output", "out")
        assert "is no line of a text file; change it" in line
