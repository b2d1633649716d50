"""A mistake on the command line: exit code 2, one line that names flag, value and fix, nothing written."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.material import PRUNED, TINY, World, checkpoint, command, register, tree

from anchorprune.commands import eval as command_eval
from anchorprune.models import open_clip as loading

pytest.importorskip("clip_benchmark")


pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture
def no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake must be found before a model is loaded."""

    def load(*_: object, **__: object) -> None:
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(loading, "load", load)


def refused(*argv: object) -> str:
    """The one line on stderr of a command that is refused and leaves the current folder as it was."""
    before = tree(Path())
    outcome = command(*argv)
    assert outcome.code == 2, outcome
    [line] = outcome.err
    assert line.startswith("anchorprune")
    assert "error: " in line
    assert "Traceback" not in line
    assert not any("Dump" in said for said in outcome.out)
    assert tree(Path()) == before
    return line


def process(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`code` in a process of its own, where no handler of pytest's takes what is logged; stderr is looked at."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=240)


# --- found at once


@pytest.mark.usefixtures("no_load")
@pytest.mark.parametrize(
    ("flags", "said"),
    [
        # the parser's own
        (["--top_n", "5"], "unrecognized arguments: --top_n 5. Did you mean '--top_m'?"),
        (["--enable_prunning"], "unrecognized arguments: --enable_prunning. Did you mean '--enable_pruning'?"),
        (["--k_anchors", "ten"], "argument --k_anchors: invalid int value: 'ten'"),
        (["--k_anchors", "2.5"], "argument --k_anchors: invalid int value: '2.5'"),
        (["--alpha", "half"], "argument --alpha: invalid float value: 'half'"),
        (["--top_m"], "argument --top_m: expected one argument"),
        (["--task", "zeroshot"], "argument --task: invalid choice: 'zeroshot'"),
        (["--precision", "fp8"], "argument --precision: invalid choice: 'fp8'"),
        (["--val_split", "a", "--val_proportion", "0.1"], "--val_proportion: not allowed with argument --val_split"),
        # the strategy
        (
            ["--enable_pruning", "--strategy", "anchr"],
            "--strategy anchr: choose one of anchor, calibrated, ",
        ),
        (["--enable_pruning", "--strategy", "anchr"], "Did you mean 'anchor'?"),
        (["--enable_pruning", "--strategy", "random", "--top_m", "5"], "--top_m 5: strategy 'random' has no such"),
        (["--enable_pruning", "--keep_patches", "5"], "--keep_patches 5: strategy 'anchor' has no such"),
        (["--enable_pruning", "--alpha", "1.5"], "--alpha 1.5: must lie between 0"),
        (["--enable_pruning", "--alpha", "-0.1"], "--alpha -0.1: must lie between 0"),
        (["--enable_pruning", "--alpha", "nan"], "--alpha nan: must lie between 0"),
        (["--enable_pruning", "--k_anchors", "0"], "--k_anchors 0: must be 1 or more"),
        (["--enable_pruning", "--top_m", "-1"], "--top_m -1: must be 0 or more"),
        (["--enable_pruning", "--prune_layer", "0"], "--prune_layer 0: must be 2 or more"),
        (["--enable_pruning", "--prune_layer", "1"], "--prune_layer 1: must be 2 or more: block 1 always sees every"),
        (["--enable_pruning", "--score_norm", "max"], "--score_norm max: choose one of none, minmax"),
        (["--enable_pruning", "--selection", "image"], "--selection image: choose one of per_image, first_image"),
        (["--enable_pruning", "--importance", "both"], "--importance both: choose one of to_anchors, from_anchors"),
        (["--alpha", "2"], "--alpha 2.0: must lie between 0"),  # also where it would have no effect
        # what is not there yet
        (["--task", "zeroshot_retrieval", "--recall_k", "0"], "--recall_k 0: give one or more numbers from 1 up"),
        (
            ["--model_type", "ja_clip"],
            "--model_type ja_clip: models of the package japanese_clip are not there yet; use ",
        ),
        (
            ["--model", "nllb-clip-base", "--language", "spa"],
            "--language spa: is none that nllb-clip-base knows; give",
        ),
        # settings
        (["--batch_size", "0"], "--batch_size 0: must be 1 or more"),
        (["--limit", "0"], "--limit 0: must be 1 or more"),
        (["--num_workers", "-1"], "--num_workers -1: must be 0"),
        (["--attention_images", "0"], "--attention_images 0: must be 1 or more"),
        (["--no_amp", "--precision", "bf16"], "--precision bf16: contradicts --no_amp, which means fp32"),
        (["--device", "nonsense"], "--device nonsense: is not to be had here"),
        # names
        (["--model", "ViT-B-33"], "--model ViT-B-33: open_clip has no such model. Did you mean 'ViT-B-32'?"),
        (["--model", "ViT-B-32", "--pretrained", "opanai"], "--pretrained opanai: neither a file nor a tag of"),
        (["--model", "ViT-B-32", "--pretrained", "opanai"], "Did you mean 'openai'? (its tags are openai, "),
        (["--pretrained_model", "opneai"], "--pretrained_model opneai: is no 'model,pretrained' pair, no collection"),
        (["--pretrained_model", "opneai"], "Did you mean 'openai'?"),
        (["--output", "{modle}.json"], "--output {modle}.json: the placeholders are {model}, {pretrained}, "),
        (["--output", "{0}.json"], "--output {0}.json: the placeholders are {model}, {pretrained}, "),
        (["--extract_attention", "--attention_output", "{x}.pt"], "--attention_output {x}.pt: the placeholders are"),
    ],
)
def test_a_wrong_flag_is_refused_before_a_model_is_loaded(world: World, flags: list[str], said: str) -> None:
    assert said in refused("eval", *world.model, *world.three, "--num_workers", 0, "--output", "r.json", *flags)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("evl", "invalid choice: 'evl'"),
        ("--halp", "unrecognized arguments: --halp. Did you mean '--help'?"),
        ("build", "the following arguments are required: files"),
        ("build a.json --outptu b.csv", "unrecognized arguments: --outptu b.csv. Did you mean '--output'?"),
        ("build missing.json", "missing.json: no such file"),
        ("compare a.json", "the following arguments are required: B.json"),
        ("compare missing.json other.json", "missing.json: no such file"),
    ],
)
def test_mistakes_in_other_commands(line: str, said: str) -> None:
    assert said in refused(*line.split())


# --- places to write to


@pytest.mark.usefixtures("no_load")
@pytest.mark.parametrize("flag", ["--output", "--save_clf", "--attention_output"])
@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("missing/r.out", "there is no folder"),
        ("file/r.out", "there is no folder"),
        ("folder", "this is a folder; name a file"),
        ("/proc/r.out", "cannot write in /proc"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_a_model_is_loaded(
    world: World, flag: str, path: str, said: str
) -> None:
    Path("file").write_text("in the way")
    Path("folder").mkdir()
    line = refused("eval", *world.model, *world.three, "--output", "r.json", "--extract_attention", flag, path)
    assert f"{flag} {path}: {said}" in line


# --- the data


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--dataset", "cifar11"], "--dataset cifar11: neither a data set that clip-benchmark knows nor a list file"),
        (["--dataset", "cifar11"], "Did you mean 'cifar10'?"),
        (["--dataset", "folder:nowhere"], "--dataset folder:nowhere: no such folder"),
        (["--dataset", "wds/four"], "wds-four: no such folder"),
        (["--split", "tests"], "Splits here: test. Did you mean 'test'?"),
        (["--dataset_root", "{data}"], "--dataset_root {data}: the placeholders are {dataset} and {dataset_cleaned}"),
        (["--custom_classname_file", "no.json"], "--custom_classname_file no.json: no such file"),
        (["--custom_template_file", "no.json"], "--custom_template_file no.json: no such file"),
    ],
)
def test_data_that_is_not_there(world: World, flags: list[str], said: str) -> None:
    flags = ["--save_clf", "clf.pt", "--extract_attention", "--attention_output", "a.pt", *flags]
    assert said in refused("eval", *world.model, *world.three, "--num_workers", 0, "--output", "r.json", *flags)


@pytest.mark.usefixtures("no_load")
def test_of_several_data_sets_none_is_evaluated_where_one_is_not_there(world: World) -> None:
    several = ["--dataset", "wds/three", "cifar11", *world.three[2:], "--output", "{dataset}.json"]
    assert "--dataset cifar11: neither a data set" in refused("eval", *world.model, *several)


def test_an_unknown_split_of_a_zoo_data_set(world: World) -> None:
    line = refused("eval", *world.model, *world.cifar10, "--split", "val", "--output", "r.json")
    assert "--split val: Only `train` and `test` split available for cifar10" in line


# --- the model


@pytest.mark.usefixtures("no_load")
def test_a_block_that_the_tower_does_not_have(world: World) -> None:
    flags = ["--save_clf", "clf.pt", *PRUNED, "--num_workers", 0, "--output", "r.json"]
    line = refused("eval", *world.model, *world.three, *flags, "--prune_layer", 5)
    assert "--prune_layer 5: this tower has blocks 1 … 4" in line
    with pytest.raises(AssertionError, match="the model is loaded"):
        command("eval", *world.model, *world.three, *flags, "--prune_layer", 4)


@pytest.mark.usefixtures("no_load")
@pytest.mark.parametrize(
    ("name", "vision", "said"),
    [
        (
            "cli-resnet",
            {"layers": [1, 1, 1, 1], "width": 8, "patch_size": None},
            "ModifiedResNet: it is a ResNet, and convolutions need the whole grid of pixels",
        ),
        (
            "cli-convnext",
            {"timm_model_name": "convnext_atto", "timm_pool": "", "timm_proj": "linear"},
            "ConvNeXt of timm: it is convolutional and needs the whole grid of pixels",
        ),
    ],
)
def test_a_convolutional_tower_cannot_be_pruned(world: World, name: str, vision: dict[str, object], said: str) -> None:
    register(world.folder, name, **vision)
    weights = checkpoint(world.folder / f"{name}.pt", name)
    flags = ["--model", name, "--pretrained", weights, *world.three, "--save_clf", "clf.pt", "--output", "r.json"]
    assert f"--model {name}: cannot prune {said}" in refused("eval", *flags, "--enable_pruning")
    assert f"--model {name}: cannot read the attention of {said}" in refused("eval", *flags, "--extract_attention")


# --- no network, and nothing else on stderr

NO_NETWORK = (
    "import socket, sys, time\n"
    "def refuse(*_, **__): raise OSError('the network is unreachable')\n"
    "socket.getaddrinfo = socket.socket.connect = socket.create_connection = refuse\n"
    "time.sleep = lambda _: None\n"  # huggingface_hub tries again, after seconds
    "from anchorprune.commands import main\n"
    "sys.exit(main(['eval', '--model', 'ViT-B-32', '--pretrained', 'openai', '--output', 'r.json']))\n"
)


def test_without_a_network_a_tag_is_one_line(here: Path) -> None:
    ended = process(NO_NETWORK, HF_HOME=str(here / "hub"), HOME=str(here))
    [line] = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert line.startswith("anchorprune: error: --pretrained openai: cannot get the weights (of ViT-B-32: ")
    assert line.endswith("check the network, or give a local checkpoint file")
    assert not list(here.rglob("*.json"))


@pytest.fixture
def no_log_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logging as a process of its own has it; pytest's handlers would take what is logged."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


@pytest.mark.usefixtures("no_log_handlers")
def test_offline_a_tag_is_one_line(here: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    flags = ["--model", "ViT-B-32", "--pretrained", "openai", "--model_cache_dir", world.folder / "hub"]
    assert "--pretrained openai: cannot get the weights (" in refused(
        "eval", *flags, *world.three, "--output", "r.json"
    )


@pytest.mark.usefixtures("no_log_handlers")
def test_what_open_clip_logs_is_one_warning_of_ours(world: World) -> None:
    flags = ["--model", TINY, "--pretrained", "", "--num_workers", 0, "--output", "r.json"]
    outcome = command("eval", *flags, *world.three)
    assert outcome.err == [
        f"anchorprune: warning: open_clip: No pretrained weights loaded for model '{TINY}'. Model initialized randomly."
    ]


# --- our own faults, and an interruption


def test_a_fault_of_ours_is_no_mistake_of_the_users(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(command_eval, "plan_runs", broken)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        command("eval", *world.model, *world.three, "--output", "r.json")


def test_a_fault_of_ours_shows_a_traceback_and_exits_with_1() -> None:
    code = (
        "import sys\nfrom anchorprune import commands\nfrom anchorprune.commands import eval as runs\n"
        "def broken(*_): raise RuntimeError('a fault of ours')\n"
        "runs.plan_runs = broken\nsys.exit(commands.main(['eval']))\n"
    )
    ended = process(code)
    assert ended.returncode == 1
    assert ended.stderr.startswith("Traceback")
    assert ended.stderr.endswith("RuntimeError: a fault of ours\n")


def test_an_interruption_is_one_line(world: World, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(loading, "load", interrupted)
    outcome = command("eval", *world.model, *world.three, "--output", "r.json")
    assert (outcome.code, outcome.err) == (130, ["anchorprune: interrupted"])
    assert tree(here) == {}
