"""`anchorprune strategies` shows every strategy with every field."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

import pytest

from anchorprune import strategies
from anchorprune.listing import WIDTH, listing
from anchorprune.strategies import registry
from anchorprune.strategies.anchor import Anchor


def sections() -> dict[str, str]:
    """What is printed of each strategy, by the name that stands above it."""
    parts = [section.partition("\n") for section in listing().split("\n\n")]
    return {heading.split()[0]: " ".join(body.split()) for heading, _, body in parts}


def test_every_strategy_is_there_with_the_first_line_of_its_docstring() -> None:
    shown = sections()
    assert list(shown) == list(registry())
    for name, cls in registry().items():
        assert cls.__doc__.splitlines()[0] in shown[name]


def test_every_field_is_there_as_a_flag_with_its_help_and_its_default() -> None:
    shown = sections()
    for name, cls in registry().items():
        for field in dataclasses.fields(cls):
            value: Any = field.default
            typed = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            default = f"[default: {typed}]" if typed else "[not given by default]"
            assert f"--{field.name} {' '.join(field.metadata['help'].split())} {default}" in shown[name]


def test_it_says_where_each_acts() -> None:
    for name, text in sections().items():
        inside = registry()[name].acts == "inside"
        assert ("Acts inside a block, between its attention and its MLP" in text) == inside
        assert ("Acts at the input of a block" in text) != inside


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

    monkeypatch.setattr(strategies, "registry", lambda: {"bare": Bare})
    text = sections()["bare"]
    assert text.startswith("Acts at the input of a block.")
    assert text.endswith("--depth [default: 3]")


def test_it_needs_no_torch() -> None:
    code = "import sys; from anchorprune.listing import listing; listing(); assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
