"""`anchorprune strategies`: what there is to choose from, with every field and its default."""

from __future__ import annotations

import argparse
import dataclasses
import textwrap
from collections.abc import Iterator
from typing import Any

from anchorprune import strategies
from anchorprune.fields import typed
from anchorprune.strategies.base import CompositeStrategy, Strategy
from anchorprune.terminal import line_width

HELP = "list the strategies with their fields"
WIDTH = 96
_PLACES = {
    "input": "at the input of a block",
    "inside": "inside a block, between its attention and its MLP",
    "stages": "through its stages, one after the other, each a strategy of its own",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """None."""


def run(args: argparse.Namespace) -> None:
    print(listing())


def listing() -> str:
    """Each strategy: what it does, where it acts, and its fields as flags, no wider than `WIDTH` or the terminal."""
    recommended = getattr(strategies, "RECOMMENDED", None)
    sections = ["\n".join(_lines(cls, name == recommended)) for name, cls in strategies.known().items()]
    return "\n\n".join(sections)


def _lines(cls: type[Strategy], recommended: bool) -> Iterator[str]:
    yield f"{cls.name} (recommended)" if recommended else cls.name
    yield from _wrapped(_summary(cls), "  ")
    place = "where the strategies do that it is made of" if issubclass(cls, CompositeStrategy) else _PLACES[cls.acts]
    yield from _wrapped(f"Acts {place}.", "  ")
    fields = dataclasses.fields(cls)
    column = max((len(field.name) for field in fields), default=0) + len("    --") + 2
    for field in fields:
        text = f"{field.metadata.get('help', '')} [{_default(field.default)}]".strip()
        yield from _wrapped(text, f"    --{field.name}".ljust(column), " " * column)


def _summary(cls: type[Strategy]) -> str:
    """The first line of the docstring; dataclasses make one up, which says nothing, where there is none."""
    lines = (cls.__doc__ or "").strip().splitlines()
    return "" if not lines or lines[0].startswith(f"{cls.__name__}(") else lines[0]


def _default(value: Any) -> str:
    """What a field is when it is not given, as it would be typed."""
    return "not given by default" if value in ((), ("",), "", None) else f"default: {typed(value)}"


def _wrapped(text: str, first: str, rest: str | None = None) -> list[str]:
    return textwrap.wrap(
        text,
        line_width(WIDTH),
        initial_indent=first,
        subsequent_indent=first if rest is None else rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
