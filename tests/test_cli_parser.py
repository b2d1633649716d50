"""The command line's own words: held against clip-benchmark's parser flag by flag, and quick to answer."""

from __future__ import annotations

import argparse
import dataclasses
import resource
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import anchorprune
from anchorprune.commands import build_parser
from anchorprune.commands._requests import MODEL_COLLECTIONS
from anchorprune.fields import typed
from anchorprune.strategies import known

pytest.importorskip("clip_benchmark")

ROOT = Path(__file__).resolve().parents[1]


def upstream_cli() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from clip_benchmark import cli
    return cli


def upstream(*argv: str) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """clip-benchmark's parser, and what it makes of `argv`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["clip_benchmark", *argv])
        return upstream_cli().get_parser_args()


def subparser(parser: argparse.ArgumentParser, name: str) -> argparse.ArgumentParser:
    return next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices[name]


def flags(parser: argparse.ArgumentParser) -> dict[str, argparse.Action]:
    """Every option string, and every positional by its name."""
    return {name: action for action in parser._actions for name in action.option_strings or [action.dest]}


def meaning(action: argparse.Action) -> dict[str, Any]:
    """All that decides what an action does; not how its help reads."""
    keys = ("option_strings", "dest", "default", "nargs", "type", "const", "required")
    choices = None if action.choices is None else list(action.choices)
    return {"kind": type(action), "choices": choices} | {key: getattr(action, key) for key in keys}


UPSTREAM_FLAGS = [(command, flag) for command in ("eval", "build") for flag in flags(subparser(upstream()[0], command))]


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT, timeout=120)


# --- the same flags


@pytest.mark.parametrize(("command", "flag"), UPSTREAM_FLAGS)
def test_each_flag_of_clip_benchmark_has_its_meaning(command: str, flag: str) -> None:
    ours = flags(subparser(build_parser(), command))
    assert flag in ours
    own, theirs = meaning(ours[flag]), meaning(flags(subparser(upstream()[0], command))[flag])
    if theirs["choices"]:  # ours may offer more
        assert set(theirs["choices"]) <= set(own["choices"])
        own["choices"] = theirs["choices"]
    if flag == "--normalize":  # bool("False") is True
        assert theirs.pop("type") is bool
        assert own.pop("type")("False") is False
    assert own == theirs


def test_the_same_flags_exclude_each_other() -> None:
    def groups(parser: argparse.ArgumentParser) -> list[tuple[bool, set[str]]]:
        return [(g.required, {a.dest for a in g._group_actions}) for g in parser._mutually_exclusive_groups]

    assert groups(subparser(build_parser(), "eval")) == groups(subparser(upstream()[0], "eval"))


@pytest.mark.parametrize(
    "line",
    [
        "eval",
        "build a.json",
        "build a.json folder --output all.csv",
        "eval --dataset cifar10",
        "eval --dataset cifar10 cifar100 wds/vtab/dtd --dataset_root data/{dataset_cleaned}",
        "eval --model ViT-B-32 ViT-B-16 --pretrained openai laion400m_e32",
        "eval --pretrained_model openai ViT-B-32,laion2b_e16",
        "eval --language en jp --split val --test_split train",
        "eval --train_split train --val_split val --fewshot_k 4 --fewshot_lr 1e-3 --fewshot_epochs 2",
        "eval --val_proportion 0.1 0.2 --skip_load --feature_root f --normalize False",
        "eval --task zeroshot_retrieval --recall_k 1 5 10 --annotation_file a.json",
        "eval --no_amp --num_workers 0 --batch_size 8 --seed 3 --distributed --quiet",
        "eval --save_clf c.pt --load_clfs a.pt b.pt --skip_existing --output {dataset}.json",
        "eval --custom_classname_file n.json --custom_template_file t.json --dump_classnames --dump_templates",
        "eval --model_type ja_clip --model_cache_dir m --wds_cache_dir w",
    ],
)
def test_the_same_line_means_the_same(line: str) -> None:
    theirs = vars(upstream(*line.split())[1])
    ours = vars(build_parser().parse_args(line.split()))
    if "--normalize False" in line:  # which upstream takes for true
        assert theirs.pop("normalize") is True
        assert ours["normalize"] is False
    assert {key: ours[key] for key in theirs} == theirs


def test_model_collections_are_clip_benchmarks() -> None:
    upstream_cli()
    from clip_benchmark.model_collection import model_collection

    assert {name: pairs for name, pairs in model_collection.items() if name != "openclip_all"} == MODEL_COLLECTIONS


def test_every_field_of_every_strategy_is_a_flag_that_help_explains() -> None:
    """Below its help stand the strategies that have it, by their default of it: `(anchor: 2; thin, coarse)`."""
    parser = subparser(build_parser(), "eval")
    for strategy in known().values():
        assert strategy.name in flags(parser)["--strategy"].help
        for field in dataclasses.fields(strategy):
            shown = flags(parser)[f"--{field.name}"].help
            help, _, owners = shown.removesuffix(")").rpartition(" (")
            assert help
            defaults = {}
            for group in owners.split("; "):
                names, _, value = group.partition(": ")
                defaults |= dict.fromkeys(names.split(", "), value)
            assert defaults[strategy.name] == typed(field.default)


# --- quick answers


@pytest.mark.parametrize("line", ["--help", "eval --help", "build --help", "compare --help", "--version", ""])
def test_help_imports_no_torch(line: str) -> None:
    code = (
        "import sys\nfrom anchorprune.commands import main\n"
        "try: code = main()\nexcept SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'open_clip', 'numpy', 'PIL', 'clip_benchmark'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    ended = run("-c", code, *line.split())
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    assert ended.stdout.startswith("anchorprune" if line == "--version" else "usage: anchorprune")


def test_eval_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    flags = ["--model", "anchorprune-demo", "--pretrained", "bundled", "--dataset", "bundled", "--limit", "2"]
    code = (
        "import sys\nimport open_clip\nbefore = set(sys.modules)\n"
        "from anchorprune.commands import main\ncode = main()\n"
        "idle = {'matplotlib', 'jinja2', 'clip_benchmark', 'sklearn', 'scipy', 'pandas', 'webdataset',"
        " 'anchorprune.report', 'anchorprune.studies', 'torch._inductor'}\n"
        "came = idle & (set(sys.modules) - before)\nsys.exit(f'imported {came}' if came else code)"
    )
    ended = run("-c", code, "eval", *flags, "--num_workers", "0", "--output", str(tmp_path / "r.json"))
    assert ended.returncode == 0, ended.stderr


def test_help_takes_less_than_a_second() -> None:
    def used() -> float:  # of processor time, so that a busy machine does not count
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    before = used()
    assert run("-m", "anchorprune", "--help").returncode == 0
    assert used() - before < 1


def test_version() -> None:
    assert run("-m", "anchorprune", "--version").stdout == f"anchorprune {anchorprune.__version__}\n"


@pytest.mark.parametrize("line", ["--help", "eval --help", "eval --strategy anchr"])
def test_the_described_entry_point_is_the_same_command_line(line: str) -> None:
    ours, described = (run(*start, *line.split()) for start in (["-m", "anchorprune"], ["clip_benchmark/cli.py"]))
    assert (described.returncode, described.stdout, described.stderr) == (ours.returncode, ours.stdout, ours.stderr)
    assert ours.returncode == (2 if "anchr" in line else 0)


def test_without_a_command_the_help_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    from anchorprune.commands import main

    assert main([]) == 0
    assert capsys.readouterr().out == build_parser().format_help()


def test_help_says_what_a_flag_is_when_it_is_not_given() -> None:
    told = " ".join(subparser(build_parser(), "sweep").format_help().split())
    assert "--batch_size BATCH_SIZE images encoded at once (default: 64)" in told
    assert "also chooses the images of --limit (default: 0)" in told
    assert "k of Recall@k (default: 5)" in told
    assert "(default: None)" not in told
    assert "%(default)s" not in told
