"""Whatever a file or a flag holds, the answer is one line that names it, and exit code 2.

`READERS` lists everything that reads texts, numbers or arrays that others may have written; what is odd is given to
each of them.
"""

from __future__ import annotations

import dataclasses
import datetime
import io
import json
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from support.material import TINY, World, command, make_wds, picture

from anchorprune import reading
from anchorprune.datasets import DataSpec, open_dataset, prompts
from anchorprune.datasets.rows import open_table
from anchorprune.datasets.wds import _vector
from anchorprune.embeddings.files import in_list
from anchorprune.embeddings.request import EncodeRequest
from anchorprune.embeddings.store import Store
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation import outcomes
from anchorprune.evaluation import result as results
from anchorprune.evaluation.request import Compute, ModelSpec, Request
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models import load
from anchorprune.models.texts import cached, classifier_key, prompts_of
from anchorprune.pruning.export import read_about
from anchorprune.pruning.gate import read_classifier
from anchorprune.reading import check_real
from anchorprune.report.csv import build
from anchorprune.strategies import known as strategies
from anchorprune.strategies import make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.studies.compare import compare
from anchorprune.studies.sweep import sweep
from anchorprune.tasks import registry as tasks
from anchorprune.tasks.zeroshot_classification import load_classifiers

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


# Each takes the path of a file that torch or safetensors would open.
TENSORS: dict[str, Callable[[Path], Any]] = {
    "a classifier": lambda path: load_classifiers([str(path)], 3),
    "the texts of a gate": lambda path: read_classifier(str(path), "gate_texts"),
    "a calibration": lambda path: make_strategy("calibrated", calibration=str(path)).applied(),
    "an exported program": lambda path: read_about(path, "torch"),
    "a model's own weights": lambda path: load(ModelSpec(name=f"local-dir:{path.parent}"), torch.device("cpu"), "fp32"),
}


@pytest.mark.parametrize("reader", TENSORS)
@pytest.mark.parametrize("kind", ["a FIFO", "a device"])
def test_tensors_are_read_of_regular_files_alone(here: Path, reader: str, kind: str) -> None:
    path = here / "w.pt"
    if kind == "a FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"w\.pt'?: .*not a regular file"):
        TENSORS[reader](path)


@pytest.mark.parametrize("reader", [each for each in TENSORS if each != "a calibration"])
def test_an_archive_that_unpacks_to_far_more_than_it_is_is_refused_before_that(
    here: Path, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MOST_PACKED", 1 << 10)
    torch.save(torch.zeros(400, 3), here / "plain.pt")
    reading.check_archive(here / "plain.pt")
    with (
        zipfile.ZipFile(here / "plain.pt") as plain,
        zipfile.ZipFile(here / "w.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    (here / "plain.pt").unlink()
    with pytest.raises(UserError, match=r"w\.pt'?: .*an archive of [\d,]+ bytes that unpacks to [\d,]+"):
        TENSORS[reader](here / "w.pt")


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


# --- numbers

HUGE = "1" + "0" * 5000


@pytest.mark.parametrize(
    "flag",
    ["batch_size", "seed", "attention_images", "limit", "num_workers", "k_anchors", "recall_k", "fewshot_epochs"],
)
@pytest.mark.parametrize("value", [HUGE, str(1 << 64), str(-(1 << 64))])
def test_a_number_that_no_integer_holds_is_refused_by_every_flag(
    world: World, here: Path, flag: str, value: str
) -> None:
    outcome = command("eval", *world.model, *world.three, f"--{flag}", value)
    assert outcome.code == 2
    [line] = outcome.err
    assert f"argument --{flag}: {value[:20]}… is no whole number of 64 bits" in line
    assert len(line) < 300


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--batch_size", 1 << 40], "--batch_size 1099511627776: must be 1 or more, and at most 2147483647"),
        (["--num_workers", 1 << 40], "--num_workers 1099511627776: must be 0 (no worker processes) or more, and at"),
        (["--device", "hpu"], "--device hpu: is not to be had here"),
        (["--device", "meta"], "--device meta: is not to be had here"),
        (["--device", "cpu:7"], "--device cpu:7: is not to be had here"),
        (["--device", "cuda:99"], "--device cuda:99: is not to be had here"),
        (["--device", "privateuseone"], "--device privateuseone: is not to be had here"),
        (["--device", ""], "--device : is not to be had here"),
        (["--enable_pruning", "--strategy", ""], "--strategy '': choose one of anchor, "),
        (["--dataset", "a\0b"], "'a\\x00b': holds a NUL byte"),
        (["--pretrained", "a\ud800b"], "'a\\ud800b': holds a NUL byte or half a character"),
        (["--dataset", "folder:" + "x" * 300], "no such folder"),
        (["--dataset", "table:" + "x" * 300 + ".csv"], "no such file"),
        (["--dataset", "folder:~nobody-of-that-name/x"], "no such folder"),
        (["--dataset", "x" * 300], "neither a data set that clip-benchmark knows nor a list file"),
        (["--pretrained", "x" * 5000], "neither a file nor a tag of"),
        (["--dataset_root", "x" * 300, "--dataset", "wds/x"], "File name too long"),
        (["--dataset_root", "~nobody-of-that-name", "--dataset", "wds/x"], "no such folder"),
        (["--custom_classname_file", "x" * 300], "no such file"),
        (["--custom_template_file", "~nobody-of-that-name/x"], "no such file"),
        (["--load_clfs", "x" * 300], "no such file"),
        (["--model_type", "hf", "--model", "x" * 300], "--model "),
        (["--model", "local-dir:" + "x" * 300], ""),
        (["--pretrained_model", "x" * 5000], "is no 'model,pretrained' pair"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_a_line(world: World, here: Path, flags: list[Any], said: str) -> None:
    outcome = command("eval", *world.model, *world.three, "--num_workers", 0, "--output", "r.json", *flags)
    assert outcome.code == 2
    [line] = outcome.err
    assert said in line


FIELDS = [(kind, field) for kind in (*strategies().values(), *tasks().values()) for field in dataclasses.fields(kind)]
ODD_VALUES = {"huge": 10**400, "low": -(10**400), "66 bits": 1 << 65, "a list of lists": [[1]], "an object": {}}


@pytest.mark.parametrize("value", ODD_VALUES)
def test_every_field_of_every_strategy_and_task_refuses_what_it_cannot_hold(value: str) -> None:
    for kind, field in FIELDS:
        with pytest.raises(UserError) as refused:
            kind.checked({field.name: ODD_VALUES[value]})
        assert field.name in str(refused.value), kind
        assert len(str(refused.value)) < 1500


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "abc"}, "WORLD_SIZE=abc in the environment is no number"),
        ({"RANK": "", "WORLD_SIZE": "1"}, "RANK= in the environment is no number"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK=-1 and WORLD_SIZE=2 in the environment: ranks are 0 to"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2 and WORLD_SIZE=2 in the environment: ranks are 0 to"),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "0"}, "SLURM_PROCID=0 and SLURM_NTASKS=0 in the environment"),
        ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "abc"}, "localhost:abc"),
    ],
)
def test_an_environment_that_no_launcher_sets_is_refused(
    world: World, here: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], said: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = command("eval", *world.model, *world.three, "--num_workers", 0, "--shard_samples")
    assert outcome.code == 2
    assert said in outcome.err[-1]
    assert len(outcome.err) == 1


@pytest.mark.parametrize("url", ["http://127.0.0.1:abc/x", "http://127.0.0.1:99999999/x", "http:///x", "http://[::1/x"])
def test_an_address_with_a_port_that_is_none_is_refused(world: World, here: Path, url: str) -> None:
    outcome = command("eval", *world.model, "--dataset", "wds/x", "--dataset_root", url, "--num_workers", 0)
    assert outcome.code == 2
    assert len(outcome.err) == 1
    assert url in outcome.err[0]


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:abc", "nonsense", "http://[::1"])
def test_a_proxy_that_is_none_is_refused(world: World, here: Path, monkeypatch: pytest.MonkeyPatch, proxy: str) -> None:
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.delenv("no_proxy", raising=False)
    url = "http://example.invalid/x"
    outcome = command("eval", *world.model, "--dataset", "wds/x", "--dataset_root", url, "--num_workers", 0)
    assert outcome.code == 2
    assert len(outcome.err) == 1
    assert url in outcome.err[0]


@pytest.mark.parametrize("spec", ["tome --r '6", 'tome --r "6', "tome \\", "", "tome --r ''"])
def test_strategies_with_quotes_that_do_not_close_are_refused(world: World, here: Path, spec: str) -> None:
    outcome = command("sweep", *world.model, *world.three, "--num_workers", 0, "--strategies", spec)
    assert outcome.code == 2
    assert len(outcome.err) == 1
    assert "--strategies" in outcome.err[0]


@pytest.mark.parametrize("text", [HUGE, "1" * 30, "3.5", "-1", "0", "", "one", "0x10"], ids=lambda text: text[:9])
def test_a_number_of_tars_that_cannot_be_is_refused(here: Path, text: str) -> None:
    root = make_wds(here / "w", [0, 1])
    (root / "test" / "nshards.txt").write_text(text)
    with pytest.raises(UserError, match=r"nshards\.txt: must hold the number of tars, 1 to 10,000,000, not"):
        open_dataset(DataSpec(name="wds/w", root=str(root)), lambda image: image)


@pytest.mark.parametrize("label", [HUGE, "1" * 30, "1e3", "", "\0", str(1 << 62)], ids=lambda text: text[:9])
@pytest.mark.parametrize("named", [True, False], ids=["class names", "none"])
def test_a_label_that_is_no_class_index_is_refused(here: Path, label: str, named: bool) -> None:
    root = make_wds(here / "w", [0, label])
    if not named:
        (root / "classnames.txt").unlink()
    with pytest.raises(UserError, match=r"sample '?(0\.tar/)?s1'? has (the )?label"):
        open_dataset(DataSpec(name="wds/w", root=str(root)), lambda image: image)


def test_what_memory_does_not_hold_is_said_in_a_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(error: Exception) -> Callable[..., Any]:
        def run(*_: Any) -> Any:
            raise error

        return run

    for error, said in (
        (MemoryError("Unable to allocate 36.4 TiB for an array"), "(Unable to allocate 36.4 TiB for an array)"),
        (MemoryError(), "there is not enough memory;"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "9 byt",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "Tried to allocate 2.00 GiB"),
    ):
        monkeypatch.setattr("anchorprune.commands.build.run", fails(error))
        outcome = command("build", "x")
        assert outcome.code == 2
        assert len(outcome.err) == 1
        assert said in outcome.err[0]


def test_a_fault_of_ours_stays_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_: Any) -> None:
        raise RuntimeError("a shape that does not fit")

    monkeypatch.setattr("anchorprune.commands.build.run", run)
    with pytest.raises(RuntimeError, match="does not fit"):
        command("build", "x")


# --- arrays


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def header(shape: str, kind: str = "<f4", data: bytes = b"") -> bytes:
    """A .npy file that says so of itself."""
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


WHOLE = npy(np.arange(3.0))
ODD_ARRAYS = {
    "nothing": b"",
    "text": b"0 1 0",
    **{f"cut at {size}": WHOLE[:size] for size in (4, 8, 9, 20, 100, 130, 140)},
    "an archive": (lambda out: (np.savez(out, a=np.zeros(3)), out.getvalue())[1])(io.BytesIO()),
    "a pickle": b"\x80\x04N.",
    "objects": header("(3,)", "|O", bytes(24)),
    "36 TiB": header("(10000000000000,)"),
    "more than 64 bits": header(f"({10**30},)"),
    "less than nothing": header("(-3,)", data=bytes(12)),
    "no shape": header("'abc'"),
    "no type": header("(3,)", "nonsense", bytes(12)),
    "nested": header("(" * 500 + ")" * 500),
    "complex": npy(np.ones(3, complex)),
    "dates": npy(np.array(["2020-01-01"] * 3, "datetime64[D]")),
    "texts": npy(np.array(["a", "b", "c"])),
    "records": npy(np.zeros(3, [("a", "f4")])),
    "nan": npy(np.array([0, np.nan, 1])),
    "infinite": npy(np.array([0, np.inf, 1])),
    "version 9": b"\x93NUMPY\x09\x00" + WHOLE[8:],
}


@pytest.mark.parametrize("name", ODD_ARRAYS)
def test_an_odd_array_is_refused_by_every_reader(here: Path, name: str) -> None:
    data = ODD_ARRAYS[name]
    with pytest.raises(ValueError, match=r"."):
        reading.array_of(data)
    with pytest.raises(UserError, match=r"^x: its \.npy must hold one number for each class \(.+\)\.$"):
        _vector(data, "x")
    for path in (here / "r.outcomes.npz", here / "alone.npz"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("keys.npy", npy(np.frombuffer(b'["a","b","c"]', np.uint8)))
            archive.writestr("scores.npy", data)
        if path.stem == "alone":
            path.write_bytes(data)
        with pytest.raises(
            UserError, match=rf"{path.name}: not the outcomes of an evaluation \(.+\); remove it"
        ) as said:
            outcomes.read(path)
        assert len(str(said.value).splitlines()) == 1
    (here / "c.npy").write_bytes(data)
    with pytest.raises(FieldError, match=r"load_clfs='.*c\.npy': is no saved tensor"):
        load_classifiers([str(here / "c.npy")], 3)


@pytest.mark.parametrize("array", [np.zeros((2, 2)), np.zeros(()), np.zeros((0, 3))], ids=["2", "0", "empty"])
def test_an_array_of_another_rank_is_no_vector_of_labels(array: Any) -> None:
    with pytest.raises(UserError, match=r"must hold one number for each class \(its shape is"):
        _vector(npy(array), "x")


def nested() -> Any:
    return torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)])


def quantised() -> Any:
    return torch.quantize_per_tensor(torch.zeros(4, 3), 0.1, 0, torch.quint8)


ODD_TENSORS: dict[str, Callable[[], Any]] = {
    "no tensor": lambda: {"a": torch.zeros(4, 3)},
    "a list": lambda: [torch.zeros(4, 3)],
    "a number": lambda: 5,
    "sparse": lambda: torch.eye(3).to_sparse(),
    "sparse rows": lambda: torch.eye(3).to_sparse_csr(),
    "meta": lambda: torch.zeros(4, 3, device="meta"),
    "quantised": quantised,
    "nested": nested,
    "complex": lambda: torch.zeros(4, 3, dtype=torch.complex64),
    "truths": lambda: torch.zeros(4, 3, dtype=torch.bool),
    "whole numbers": lambda: torch.zeros(4, 3, dtype=torch.int64),
    "a vector": lambda: torch.zeros(3),
    "an image": lambda: torch.zeros(1, 4, 3),
    "empty": lambda: torch.zeros(0, 3),
    "larger than itself": lambda: torch.zeros(1).expand(1 << 40, 3),
    "nan": lambda: torch.full((4, 3), torch.nan),
    "infinite as float32": lambda: torch.full((4, 3), 1e300, dtype=torch.float64),
    "small and nan": lambda: torch.full((4, 3), torch.nan).to(torch.float8_e4m3fn),
}


@pytest.mark.filterwarnings("ignore")  # what torch says of its own kinds
@pytest.mark.parametrize("name", ODD_TENSORS)
def test_an_odd_tensor_is_no_classifier(here: Path, name: str) -> None:
    torch.save(ODD_TENSORS[name](), here / "c.pt")
    with pytest.raises(FieldError, match=r"load_clfs='.*c\.pt': ") as refused:
        load_classifiers([str(here / "c.pt")], 3)
    assert len(str(refused.value).splitlines()) == 1


def test_plain_tensors_of_every_kind_of_floating_point_are_classifiers(here: Path) -> None:
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        torch.save(torch.ones(4, 3, dtype=kind), here / "c.pt")
        assert torch.equal(load_classifiers([str(here / "c.pt")], 3), torch.ones(4, 3))
    check_real(torch.ones(6, 4)[::2].t(), 2)


@pytest.mark.filterwarnings("ignore")  # what torch says of its own kinds
@pytest.mark.parametrize("name", [*ODD_TENSORS, "of another width"])
def test_an_odd_tensor_among_the_kept_classifiers_is_built_again(here: Path, name: str) -> None:
    torch.save(ODD_TENSORS.get(name, lambda: torch.zeros(4, 5))(), here / "key.pt")
    assert torch.equal(cached(str(here), "key", lambda: torch.eye(3), 3), torch.eye(3))


def test_a_file_that_is_no_tensor_is_no_classifier(here: Path) -> None:
    torch.save(torch.zeros(4, 3), here / "whole.pt")
    whole = (here / "whole.pt").read_bytes()
    np.savez(here / "a.npz", a=np.zeros((4, 3)))
    for data in (b"", b"text", whole[:50], whole[:-50], (here / "a.npz").read_bytes(), b"\x80\x04cos\nsystem\n."):
        (here / "c.pt").write_bytes(data)
        with pytest.raises(FieldError, match=r"load_clfs='.*c\.pt': is no saved tensor \(.+\)"):
            load_classifiers([str(here / "c.pt")], 3)


# --- weights


@pytest.mark.parametrize("form", ["pt", "old.pt", "safetensors"])
@pytest.mark.parametrize("name", ["visual.proj", "logit_scale", "token_embedding.weight"])
def test_weights_that_are_not_finite_are_refused_though_no_feature_shows_them(
    world: World, here: Path, form: str, name: str
) -> None:
    state = torch.load(world.weights, weights_only=True)
    state[name].view(-1)[-1] = torch.inf
    saved(state, form)
    line = refused(world, f"w.{form}")
    assert f"--pretrained w.{form}: numbers that are not finite: its weights hold 1 such numbers ({name})" in line


@pytest.mark.parametrize("form", ["pt", "old.pt", "safetensors"])
def test_complex_weights_are_refused(world: World, here: Path, form: str) -> None:
    state = torch.load(world.weights, weights_only=True)
    state["visual.proj"] = state["visual.proj"].to(torch.complex64)
    try:
        saved(state, form)
    except (KeyError, ValueError, TypeError):
        pytest.skip("this safetensors knows no complex numbers")
    assert f"--pretrained w.{form}: holds complex numbers; weights are real" in refused(world, f"w.{form}")


@pytest.mark.parametrize("form", ["pt", "pth", "safetensors"])
def test_whole_numbers_and_truths_are_no_weights(world: World, here: Path, form: str) -> None:
    state = torch.load(world.weights, weights_only=True)
    for name, kind in (("visual.proj", torch.int8), ("visual.conv1.weight", torch.bool)):
        saved({**state, name: state[name].to(kind)}, form)
        assert f"--pretrained w.{form}: holds weights that are no real numbers: {name} is of" in refused(
            world, f"w.{form}"
        )
    saved({name: weight.bfloat16() for name, weight in state.items()}, form)
    load(ModelSpec(name=TINY, pretrained=f"w.{form}"), torch.device("cpu"), "fp32")


@pytest.mark.parametrize("value", [0.0, 3e38])
def test_a_classifier_by_which_all_images_are_equally_near_is_refused(here: Path, value: float) -> None:
    torch.save(torch.cat([torch.ones(4, 2), torch.full((4, 1), value)], dim=1), "c.pt")
    for read in (TENSORS["a classifier"], TENSORS["the texts of a gate"]):
        with pytest.raises(UserError, match="1 of its 3 classes are zeros, or too large"):
            read(Path("c.pt"))


def saved(state: dict[str, Any], form: str) -> None:
    if form == "safetensors":
        save_file(state, f"w.{form}")
    else:
        torch.save(state, f"w.{form}", _use_new_zipfile_serialization=form == "pt")


def refused(world: World, weights: str) -> str:
    outcome = command("eval", "--model", TINY, "--pretrained", weights, *world.three, "--num_workers", 0)
    assert outcome.code == 2
    [line] = outcome.err
    return line


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
