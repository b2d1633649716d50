"""Numbers, addresses and words on a command line that cannot be: one line that names the flag, and exit code 2."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.material import World, command, make_wds

from anchorprune.datasets import DataSpec, open_dataset
from anchorprune.errors import UserError
from anchorprune.strategies import known as strategies
from anchorprune.tasks import registry as tasks

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
        (["--model_type", "hf", "--pretrained", "", "--model", "x" * 300], "--model "),
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
