"""`anchorprune strategies` shows every strategy with every field."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from anchorprune import strategies
from anchorprune.commands._flags import parse_strategies
from anchorprune.commands.strategies import WIDTH, listing
from anchorprune.strategies import known
from anchorprune.strategies.anchor import Anchor


def sections() -> dict[str, str]:
    """What is printed of each strategy, by the name that stands above it."""
    parts = [section.partition("\n") for section in listing().split("\n\n")]
    return {heading.split()[0]: " ".join(body.split()) for heading, _, body in parts}


def test_one_strategy_as_it_is_printed() -> None:
    assert sections()["random"] == (
        "One seeded random subset of the patch tokens, the same for all images: the baseline. "
        "Acts at the input of a block. "
        "--prune_layers act in these blocks, counted from 1, ascending [default: 2] "
        "--keep_patches patch tokens that go on from each of the prune_layers; one number: from the last, falling by "
        "equal shares from layer to layer (60 when keep_ratio is not given either) [not given by default] "
        "--keep_ratio the same as shares of the image's patch tokens, 0 … 1 [not given by default] "
        "--draw_seed which subset is drawn; quote the mean of several [default: 0]"
    )


def test_every_file_of_a_strategy_is_there_with_what_it_says_of_it() -> None:
    folder = Path(strategies.__file__).parent
    files = {path.stem: path.read_text(encoding="utf-8") for path in folder.glob("*.py")}
    shown = sections()
    assert set(shown) == set(files) - {"__init__", "base"}
    for name, text in shown.items():
        assert text.partition(" Acts ")[0] in " ".join(files[name].split())


def test_what_is_listed_can_be_typed() -> None:
    """Every flag with the default that stands behind it makes the strategy as it is without any."""
    for name, text in sections().items():
        listed = re.findall(r"--(\w+) .*?\[(?:default: ([^\]]*)|not given by default)\]", text)
        assert {flag for flag, _ in listed} == {field.name for field in dataclasses.fields(known()[name])}
        typed = " ".join(f"--{flag} {value}" for flag, value in listed if value)
        [wanted] = parse_strategies([f"{name} {typed}"])
        assert wanted.strategy == known()[name]()


def test_it_says_where_each_acts() -> None:
    """As docs/architecture.md has it: at a block's input those that need no more than a gather."""
    inside = {name for name, text in sections().items() if "Acts inside a block, between its attention and" in text}
    at_the_input = {name for name, text in sections().items() if "Acts at the input of a block." in text}
    assert inside == {
        "cls_attention",
        "coarse",
        "evit",
        "max_min",
        "pitome",
        "rapid_like",
        "thin",
        "tofu",
        "token_transforming",
        "tome",
        "zero_tprune",
    }
    assert at_the_input == {"anchor", "random", "vwt_intra"}


def test_it_fits_a_terminal_and_has_no_stray_spaces() -> None:
    assert 80 <= WIDTH <= 100
    for line in listing().splitlines():
        assert len(line) <= WIDTH
        assert line == line.rstrip()


def test_the_recommended_one_is_marked_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def marked() -> list[str]:
        return [line.split()[0] for line in listing().splitlines() if line.endswith(" (recommended)")]

    monkeypatch.setattr(strategies, "RECOMMENDED", "tome", raising=False)
    assert marked() == ["tome"]
    monkeypatch.delattr(strategies, "RECOMMENDED")
    assert marked() == []


def test_a_strategy_of_another_package_without_docstring_or_help_is_listed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True)
    class Bare(Anchor):
        name = "bare"
        depth: int = 3

    monkeypatch.setattr(strategies, "known", lambda: {"bare": Bare})
    text = sections()["bare"]
    assert text.startswith("Acts at the input of a block.")
    assert text.endswith("--depth [default: 3]")


def test_it_needs_no_torch() -> None:
    code = (
        "import sys; from anchorprune.commands.strategies import listing; listing(); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
