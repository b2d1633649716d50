"""Whatever a file or a flag holds, the answer is one line that names it, and exit code 2.

`READERS` lists everything that reads texts, numbers or arrays that others may have written; what is odd is given to
each of them.
"""

from __future__ import annotations

import datetime
import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.material import TINY, World, command, picture

from anchorprune import reading
from anchorprune.datasets import DataSpec, open_dataset, prompts
from anchorprune.datasets.rows import open_table
from anchorprune.embeddings.files import in_list
from anchorprune.embeddings.request import EncodeRequest
from anchorprune.embeddings.store import Store
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation import result as results
from anchorprune.evaluation.request import Compute, ModelSpec, Request
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models.texts import classifier_key, prompts_of
from anchorprune.pruning.export import read_about
from anchorprune.report.csv import build
from anchorprune.strategies import make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.studies.compare import compare
from anchorprune.studies.sweep import sweep

DEEP = "[" * 1000 + "]" * 1000
RESULT: dict[str, Any] = {
    "dataset": "cifar10",
    "model": "ViT-B-32",
    "pretrained": "openai",
    "task": "zeroshot_classification",
    "metrics": {"acc1": 0.825},
}


def _commands(name: str) -> Callable[[Path], None]:
    """What a command does with a file."""

    def run(path: Path) -> None:
        outcome = command(*(str(path) if word == "FILE" else word for word in name.split()))
        assert len(outcome.err) == 1, outcome
        assert outcome.code == 2
        raise UserError(outcome.err[0])

    return run


def _encoded(path: Path) -> None:
    path.rename(path.parent / "encode.json")
    Store(path.parent, EncodeRequest(input="x", model=ModelSpec(name="m")), {"input": "x"}, 1)


def _rows(path: Path) -> None:
    list(open_table(path.rename(path.with_suffix(".jsonl"))).rows(["image"]))


# Each takes the path of a file of JSON, and raises UserError, which names the file.
READERS: dict[str, Callable[[Path], Any]] = {
    "a result": results.read,
    "a result, whole": results.load,
    "results for build": lambda path: build([path], path.parent / "all.csv"),
    "a folder for build": lambda path: build([path.parent], path.parent / "all.csv"),
    "results to compare": lambda path: compare(path, path),
    "build": _commands("build FILE --output all.csv"),
    "compare": _commands("compare FILE FILE"),
    "rerun": _commands("rerun FILE"),
    "a strategy": Strategy.load,
    "class names": lambda path: prompts.custom_classes(str(path), "cifar10"),
    "templates": lambda path: prompts.custom_templates(str(path), "cifar10"),
    "encode.json": _encoded,
    "rows of JSON lines": _rows,
}
ODD_JSON = {
    "nothing": "",
    "half of it": '{"metrics": ',
    "no UTF-8": b'{"a": "\xff\xfe"}',
    "a list": "[]",
    "null": "null",
    "a number": "7",
    "a text": '"text"',
    "deep": DEEP,
    "deep within": f'{{"metrics": {DEEP}, "cifar10": {DEEP}, "strategy": {DEEP}, "identity": {DEEP}}}',
    "objects in objects": '{"a":' * 1000 + "1" + "}" * 1000,
    "not deep enough for json": "[" * 200 + "]" * 200,
    "twice": '{"metrics": {}, "metrics": {}, "cifar10": 1, "cifar10": 2}',
    "half a character": '{"dataset": "\\ud800", "cifar10": ["\\ud800"]}',
    "a number of 401 digits": f'{{"metrics": {{"acc1": 1{"0" * 400}}}, "cifar10": 1{"0" * 400}}}',
    "a number of 5,000 digits": f'{{"metrics": {{"acc1": {"9" * 5000}}}}}',
    "a number beyond floats": '{"metrics": {"acc1": 1e400}, "cifar10": 1e400}',
}


@pytest.mark.parametrize("reader", READERS)
def test_odd_json_is_refused_by_every_reader_in_a_line_that_names_the_file(
    here: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in ODD_JSON.items():
        folder = here / name.replace(" ", "_")
        folder.mkdir()
        monkeypatch.chdir(folder)
        path = folder / "odd.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError) as refused:
            READERS[reader](path)
        said = str(refused.value)
        assert str(folder) in said, (name, said)
        assert len(said.splitlines()) == 1, name
        assert len(said) < 1500, name


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "gone.json", "loop", "pipe", "folder", "device"])
def test_a_name_that_is_no_file_of_json_is_refused_by_every_reader(here: Path, reader: str, name: str) -> None:
    if reader in ("encode.json", "rows of JSON lines", "a folder for build"):
        pytest.skip("it is told by its folder or its ending")
    (here / "folder").mkdir()
    if name == "loop":
        (here / name).symlink_to(name)
    elif name == "device":
        (here / name).symlink_to("/dev/zero")
    elif name == "pipe":
        os.mkfifo(here / name)
    with pytest.raises(UserError) as refused:
        READERS[reader](here / name)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "l.txt"])
def test_a_line_without_end_does_not_fill_the_memory(here: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "MOST_LINE", 100)
    line = "x" * 90 + "\n"
    (here / name).write_text(json.dumps({"image": "a.png"}) if name == "t.jsonl" else "image\n" + line)
    read: Callable[[str], Any] = in_list if name == "l.txt" else lambda file: list(open_table(Path(file)).rows([]))
    read(str(here / name))
    (here / name).write_text("\n" + "x" * 101)
    with pytest.raises(UserError, match=rf"{name}.*a line of more than 100 characters"):
        read(str(here / name))


@pytest.mark.parametrize("text", ["1_0", "\u0661", "0x1", "1.0", "1 0", "", "--1", "\u00b2"])
def test_a_whole_number_is_of_the_ten_digits_alone(text: str) -> None:
    with pytest.raises(ValueError, match="is no whole number"):
        reading.whole_number(text)


# --- results: what is there is of its type


@pytest.mark.parametrize("key", ["metrics", "pruning", "cost", "environment", "model_options", "request", "dataset"])
@pytest.mark.parametrize("value", [[1], "text", 3, 2.5, True, {"strategy": [1], "measured": 5, "gmacs": "x"}])
def test_a_result_with_a_part_of_another_type_is_refused_or_read_by_all(here: Path, key: str, value: Any) -> None:
    path = here / "r.json"
    path.write_text(json.dumps({**RESULT, key: value}))
    calls = (lambda: build([path], here / "all.csv"), lambda: compare(path, path).to_text())
    is_right = (
        isinstance(value, str) if key == "dataset" else isinstance(value, dict) and key not in ("pruning", "cost")
    )
    for call in calls:
        if is_right:
            call()
        else:
            with pytest.raises(UserError, match=rf"r\.json: not the result of an evaluation, its '{key}"):
                call()


def test_a_metric_that_is_not_finite_is_none_in_clip_benchmarks_own_results(here: Path) -> None:
    path = here / "r.json"
    path.write_text(json.dumps({**RESULT, "metrics": {"acc1": 0.5, "acc5": math.nan, "x": math.inf}}))
    assert results.read(path)["metrics"] == {"acc1": 0.5, "acc5": None, "x": None}


@pytest.mark.parametrize(
    "change",
    [
        {"model": 5},
        {"model": {"name": 5}},
        {"model": {"name": "m", "library": "\0"}},
        {"data": {"name": "d", "limit": "3"}},
        {"data": {"name": "d", "seed": 2.5}},
        {"data": {"name": "d", "root": None}},
        {"data": {"name": "folder:\0"}},
        {"compute": {"batch_size": True}},
        {"compute": {"batch_size": 1 << 40}},
        {"compute": {"num_workers": 1 << 20}},
        {"compute": {"device": 0}},
        {"task": {"task": []}},
        {"task": {"task": "linear_probe", "fewshot_lr": "high"}},
        {"task": {"task": "zeroshot_classification", "load_clfs": [[1]]}},
        {"task": {"task": "zeroshot_classification", "name": 1}},
        {"pruning": []},
        {"pruning": {"strategy": "anchor", "name": 1}},
        {"pruning": {"strategy": "anchor", "alpha": [0.5]}},
        {"pruning": {"strategy": "anchor", "k_anchors": 1 << 64}},
        {"pruning": {"strategy": "cascade", "stages": 1}},
        {"pruning": {"strategy": "cascade", "stages": [1, 2]}},
        {"pruning": {"strategy": "calibrated", "calibration": 1}},
        {"version": None},
    ],
    ids=str,
)
def test_a_request_with_a_wrong_value_is_refused_by_rerun(here: Path, change: dict[str, Any]) -> None:
    request = Request(model=ModelSpec(name="m"), data=DataSpec(name="d")).as_dict() | change
    (here / "r.json").write_text(json.dumps({**RESULT, "request": request, "config_hash": "0"}))
    outcome = command("rerun", "r.json")
    assert outcome.code == 2
    assert len(outcome.err) == 1
    assert "r.json: " in outcome.err[0]


def test_a_finished_shards_record_of_another_shape_is_no_finished_shard(here: Path) -> None:
    store = Store(here, EncodeRequest(input="x", model=ModelSpec(name="m")), {"input": "x"}, 1)
    (here / "shards").mkdir()
    for odd in (
        {"rows": [], "failures": [], "seconds": {}},
        {"rows": 0, "failures": [[1]], "seconds": {}},
        {"rows": 0, "failures": [], "seconds": [1]},
        {"rows": 0, "failures": [], "seconds": {"total": "x"}},
        {"rows": 0, "failures": 3, "seconds": {}},
    ):
        (here / "shards" / "00000.json").write_text(json.dumps({"request": store.hash, **odd}))
        assert store.record(0) is None
    (here / "shards" / "check.json").write_text(DEEP)
    assert store.check() is None


# --- templates


@pytest.mark.parametrize("template", ["{0[a]}", "{c:9999999999}", "{c.__class__}", "{c!r}", "{", "{}", "no class name"])
def test_a_template_without_the_plain_placeholder_is_refused(here: Path, template: str) -> None:
    (here / "t.json").write_text(json.dumps({"cifar10": [template]}))
    with pytest.raises(UserError, match=r"must hold \{c\} where the class name goes"):
        prompts.custom_templates(str(here / "t.json"), "cifar10")
    with pytest.raises(UserError, match=r"must hold \{c\}"):
        prompts.check_templates([template], "templates.txt")


def test_beside_the_class_name_nothing_in_a_template_is_formatted() -> None:
    odd = ["{c} {0[a]} {c:9999999999} {c.__class__} {{ }} {", "{{c}}"]
    assert prompts_of("a {c} b", odd[1:]) == ["{a {c} b}"]
    assert prompts_of("cat", odd) == ["cat {0[a]} {c:9999999999} {c.__class__} {{ }} {", "{cat}"]
    assert prompts.check_templates(odd, "here") == odd
    model = torch.nn.Linear(1, 1)
    assert classifier_key(model, lambda texts: torch.tensor([len(text) for text in texts]), ["cat"], odd, "fp32")


@pytest.mark.parametrize(
    "template", ["{dataset.__class__}", "{dataset:9999999999}", "{dataset!r}", "{0}", "{", "}", "{}"]
)
@pytest.mark.parametrize("flag", ["--dataset_root", "--output"])
def test_placeholders_of_paths_are_replaced_and_not_formatted(
    world: World, here: Path, flag: str, template: str
) -> None:
    outcome = command("eval", *world.model, "--dataset", "wds/x", "--num_workers", 0, flag, template)
    assert outcome.code == 2
    assert len(outcome.err) == 1
    assert f"{flag} {template}: the placeholders are {{" in outcome.err[0]


def test_braces_of_a_path_are_written_twice() -> None:
    assert reading.filled("{{a}}/{name}/{{{name}}}", name="{x}") == "{a}/{x}/{{x}}"


# --- labels in tables


@pytest.mark.parametrize(
    "label",
    [
        ("timestamp", "2020-01-01"),
        ("struct", {"a": 1}),
        ("bool", True),
        ("nan", math.nan),
        ("infinite", math.inf),
        ("half", 0.5),
        ("huge", 1e300),
        ("many", 1 << 60),
        ("bytes", b"cat"),
        ("nothing", None),
        ("digits", "1" * 5000),
        ("lists", [[0]]),
        ("dates", ["2020-01-01"]),
    ],
    ids=lambda label: label[0],
)
def test_labels_in_parquet_that_are_no_classes_are_refused(here: Path, label: tuple[str, Any]) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    value = datetime.datetime(2020, 1, 1) if label[0] == "timestamp" else label[1]
    value = [datetime.date(2020, 1, 1)] if label[0] == "dates" else value
    picture(0).save(here / "0.png")
    parquet.write_table(pa.Table.from_pylist([{"image": "0.png", "label": value}]), here / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet") as refused:
        open_dataset(DataSpec(name=f"table:{here / 't.parquet'}"), lambda image: image)
    assert len(str(refused.value).splitlines()) == 1
    assert len(str(refused.value)) < 1500


@pytest.mark.parametrize("column", ["{0[a]}", "{c.__class__}", "{", "{}"])
def test_a_tables_columns_may_be_called_whatever(here: Path, column: str) -> None:
    (here / "t.csv").write_text(f"{column},label\n0.png,cat\n")
    with pytest.raises(FieldError, match=r"no column is called image") as refused:
        open_dataset(DataSpec(name=f"table:{here / 't.csv'}"), lambda image: image)
    assert f"Its columns: {column}, label" in refused.value.as_flag()
    outcome = command("encode", "--input", "t.csv", "--out", "o", "--model", "ViT-B-32", "--pretrained", "openai")
    assert outcome.code == 2
    assert f"Its columns: {column}, label" in outcome.err[-1]


# --- few images that can be read


@pytest.fixture
def broken(world: World, here: Path) -> list[Any]:
    """Flags for two classes with one good image in all."""
    for label in ("cat", "dog"):
        (here / "d" / label).mkdir(parents=True)
        for i in range(4):
            (here / "d" / label / f"{i}.png").write_bytes(b"no image")
    picture(0).save(here / "d" / "cat" / "0.png")
    return [*world.model, "--dataset", f"folder:{here / 'd'}", "--num_workers", 0, "--skip_bad_images"]


@pytest.mark.filterwarnings("ignore")  # that images cannot be read
def test_a_sweep_goes_by_the_one_image_that_can_be_read(world: World, broken: list[Any]) -> None:
    model = ModelSpec(name=TINY, pretrained=str(world.weights))
    request = Request(model=model, data=DataSpec(name=broken[-4], skip_bad_images=True), compute=Compute(num_workers=0))
    swept = sweep(request, [make_strategy("random", keep_patches=4)], progress=False)
    assert [point.name for point in swept.points] == ["unpruned", "random"]
    assert swept.results[0][0].n_bad_images == 7


# --- places


@pytest.mark.skipif(os.geteuid() == 0, reason="root may search every folder")
def test_a_folder_that_cannot_be_searched_is_named(world: World, here: Path) -> None:
    (here / "closed").mkdir(mode=0)
    for name in ("folder:closed/x", "table:closed/x.csv"):
        outcome = command("eval", *world.model, "--dataset", name, "--num_workers", 0)
        assert outcome.code == 2
        assert len(outcome.err) == 1
        assert "closed/x" in outcome.err[0]


def test_devices_are_tried_before_the_work() -> None:
    with pytest.raises(FieldError, match="device='meta': is not to be had here"):
        Runtime.of(Compute(device="meta"))
    assert Runtime.of(Compute(device="cpu:0")).device.type == "cpu"


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_a_file_that_export_has_not_written_says_nothing_of_itself(here: Path, format: str) -> None:
    if format == "onnx":
        pytest.importorskip("onnx")
    with pytest.raises(UserError, match=r"gone: no such file"):
        read_about(here / "gone", format)
    contents = [b"", b"text", b"\xff" * 100]
    for inner in ("[]", DEEP, '{"a": 1, "a": 2}', "{"):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            archive.writestr("archive/extra/anchorprune.json", inner)
        contents.append(out.getvalue())
    for content in contents:
        (here / "t").write_bytes(content)
        with pytest.raises(UserError, match=rf"t: is no file that export wrote as {format} \(.+\)$"):
            read_about(here / "t", format)
