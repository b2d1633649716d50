"""The documents tell the truth: their commands parse, their flags exist, their links resolve, their Python runs."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path

import open_clip
import pytest
import torch
from support.models import make_clip

from anchorprune import RECOMMENDED
from anchorprune.commands import build_parser
from anchorprune.commands._flags import parse_strategies
from anchorprune.evaluation.preflight import dense_gmacs
from anchorprune.models import skeleton
from anchorprune.models.base import ModelSpec
from anchorprune.pruning.budget import gmacs
from anchorprune.pruning.grid import coarser
from anchorprune.strategies import make_strategy, strategy_options

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
READMES = [ROOT / "README.md", ROOT / "docs/README.zh-CN.md"]
# What torchrun, ray and srun are told, up to the first hyphen within.
LAUNCHERS = {f"--{name}" for name in ("address", "gpus", "head", "kill", "nnodes", "nodes", "nproc_per_node", "ntasks")}
LAUNCHERS |= {"--port", "--rdzv_backend", "--rdzv_endpoint"}
OURS = ("anchorprune ", "python3 clip_benchmark/cli.py ", "python -m anchorprune ")


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def commands(page: Path) -> list[str]:
    """The command lines in the page's shell blocks, each on one line, without comments."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.join(words) for line in lines if (words := shlex.split(line, comments=True))]


def real_flags() -> set[str]:
    """Every flag of every command."""
    parsers = build_parser()._subparsers._group_actions[0].choices.values()
    return {option for parser in parsers for action in parser._actions for option in action.option_strings}


def flags_of(script: Path) -> set[str]:
    """The flags that a script adds to its own parser."""
    return set(re.findall(r"""add(?:_argument)?\(\s*["'](--\w+)["']""", script.read_text(encoding="utf-8")))


# Not those of the page whose commands need the package that it writes: test_docs_extending.py runs them.
PARSED = [page for page in PAGES if page.name != "extending.md"]


@pytest.mark.parametrize("page", PARSED, ids=names(PARSED))
def test_every_command_in_a_document_is_one_that_the_parser_takes(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(parser: argparse.ArgumentParser, message: str) -> None:
        raise AssertionError(f"{parser.prog}: {message}")

    monkeypatch.setattr("anchorprune.commands._flags.Parser.error", refuse)
    for command in commands(page):
        _, _, launched = command.partition(" -m anchorprune ")  # by python, or by torchrun
        if not command.startswith(OURS) and not launched:
            continue
        words = shlex.split(launched or command)
        words = words if launched else words[2 if words[0] == "python3" else 1 :]
        args = build_parser().parse_args(words)
        parse_strategies(getattr(args, "strategies", None))
        if getattr(args, "enable_pruning", False):
            parse_strategies([args.strategy or "anchor"])


def test_there_are_commands_to_look_at() -> None:
    assert sum(command.startswith(OURS) for page in PAGES for command in commands(page)) > 12


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_flag_of_a_script_in_a_document_is_one_that_it_has(page: Path) -> None:
    """Scripts that pass on what they do not know have the flags of `eval` and `sweep` too."""
    for command in commands(page):
        words = shlex.split(command)
        script = next((ROOT / word for word in words[:2] if re.match(r"(benchmarks|tools)/.*\.py$", word)), None)
        if script is None:
            continue
        assert script.exists(), command
        given = {word.split("=")[0] for word in words if re.match(r"--\w", word)}
        assert not given - flags_of(script) - real_flags(), command


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_flag_that_a_document_mentions_exists(page: Path) -> None:
    """A flag of one of our commands, or of a script that the page names."""
    text = page.read_text(encoding="utf-8")
    scripts = [ROOT / name for name in re.findall(r"(?:benchmarks|tools)/[\w/]+\.py", text)]
    known = real_flags().union(*map(flags_of, scripts))
    assert not set(re.findall(r"(?<![\w-])--[a-z]\w+", text)) - known - LAUNCHERS


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_local_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", READMES, ids=names(READMES))
def test_the_first_python_example_runs(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    model = make_clip()

    def create(name: str, pretrained: str) -> tuple:
        assert name in open_clip.list_models()
        assert pretrained in open_clip.list_pretrained_tags_by_model(name)
        return model, None, None

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    example = re.search(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL).group(1)
    example = example.replace("keep_patches=51", "keep_patches=6")  # this model has 17 tokens
    with torch.no_grad():
        exec(example, {"images": torch.randn(2, 3, 32, 32)})
    assert "17 7" in capsys.readouterr().out


def test_both_readmes_have_the_same_sections_commands_and_figures() -> None:
    english, chinese = (page.read_text(encoding="utf-8") for page in READMES)
    assert re.findall(r"^##+(?= )", english, re.MULTILINE)[:13] == re.findall(r"^##+(?= )", chinese, re.MULTILINE)[:13]
    assert set(commands(READMES[0])) <= set(commands(READMES[1]))
    table = re.compile(r"^\| [^|]*\|( \d+ \| [\d.]+ \| [\d. ×]*\| [\d.]+ ± [\d.]+ \|)$", re.MULTILINE)
    assert len(table.findall(english)) == 7
    assert table.findall(english) == table.findall(chinese)


@pytest.mark.parametrize("page", READMES, ids=names(READMES))
def test_the_first_python_example_costs_what_it_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    budget, entering, leaving, percent = map(
        int, re.search(r"keep_patches=(\d+)\).*?196\D+(\d+)\D+(\d+)\D+(\d+) %", text, re.DOTALL).groups()
    )
    strategy = make_strategy(RECOMMENDED, keep_patches=budget)
    model = skeleton("open_clip", "ViT-B-16-quickgelu")
    assert round(100 * gmacs(model, strategy) / dense_gmacs(ModelSpec(name="ViT-B-16-quickgelu"))) == percent
    counts = strategy.schedule(196, 12)
    rows, columns = coarser((14, 14), counts[0])
    assert (rows * columns, counts[max(counts)]) == (entering, leaving)


def test_the_readmes_table_of_flags_states_the_real_defaults() -> None:
    rows = re.findall(r"^\| `--(\w+)` \| `?([^`|]+)`? \|", READMES[0].read_text(encoding="utf-8"), re.MULTILINE)
    stated = {flag: default.strip() for flag, default in rows if default.strip() != "off"}
    options = strategy_options()
    real = {flag: str(options[flag].default) for flag in stated if flag in options}
    assert real.items() <= stated.items()
    assert set(stated) - set(real) == {"strategy"}
    assert {"k_anchors": "10", "top_m": "50", "alpha": "0.5", "prune_layer": "2"}.items() <= stated.items()
