"""The documents tell the truth: their flags exist, their links resolve, their Python runs."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest
import torch
from conftest import make_clip

from anchorprune import RECOMMENDED
from anchorprune.budget import dense_gmacs, gmacs
from anchorprune.cli import build_parser
from anchorprune.grid import coarser
from anchorprune.options import strategy_options
from anchorprune.strategies import make_strategy
from anchorprune.towers import skeleton

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
READMES = [ROOT / "README.md", ROOT / "docs/README.zh-CN.md"]
# Flags of other programs that the pages mention: scripts under benchmarks/ and demo/ hold their own.
PROGRAMS = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("src/anchorprune/**/*.py")]


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_flag_in_a_document_exists(page: Path) -> None:
    code = "\n".join(program.read_text(encoding="utf-8") for program in PROGRAMS)
    commands = build_parser()._subparsers._group_actions[0].choices.values()
    flags = {option for command in commands for action in command._actions for option in action.option_strings}
    flags |= set(re.findall(r'"(--\w+)"', code))
    mentioned = set(re.findall(r"(?<![\w-])--[a-z]\w+", page.read_text(encoding="utf-8")))
    assert not mentioned - flags


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


@pytest.mark.parametrize("page", READMES, ids=names(READMES))
def test_the_first_python_example_costs_what_it_says(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    budget, entering, leaving, percent = map(
        int, re.search(r"keep_patches=(\d+)\).*?196\D+(\d+)\D+(\d+)\D+(\d+) %", text, re.DOTALL).groups()
    )
    strategy = make_strategy(RECOMMENDED, keep_patches=budget)
    model = skeleton("open_clip", "ViT-B-16-quickgelu")
    assert round(100 * gmacs(model, strategy) / dense_gmacs("open_clip", "ViT-B-16-quickgelu")) == percent
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
