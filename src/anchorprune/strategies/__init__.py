"""The strategies by name. Each lives in a file of this folder, or of another package that says so by an entry point.

None imports torch on import.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import shlex
from dataclasses import dataclass
from typing import Any, NoReturn

from anchorprune import plugins
from anchorprune.errors import UserError, did_you_mean
from anchorprune.fields import add_flag
from anchorprune.strategies.base import CompositeStrategy, Strategy

# What `prune` takes when no strategy is named: the most accurate for its compute (docs/method.md).
RECOMMENDED = "coarse"


@functools.cache
def registry() -> dict[str, type[Strategy]]:
    """Every strategy that prunes a tower, of this folder and of installed packages, by name.

    Raises:
        UserError: as in `plugins.found`.
    """
    found = plugins.found(Strategy, __name__)  # type: ignore[type-abstract]
    return {name: cls for name, cls in found.items() if cls.acts != "stages"}


def known() -> dict[str, type[Strategy]]:
    """Those, and the one that runs several of them in stages."""
    from anchorprune.strategies.cascade import Cascade  # which imports this file

    return {**registry(), Cascade.name: Cascade}


def standalone() -> list[str]:
    """The names of those that are made of no others, and so need nothing but a budget."""
    return [name for name, cls in registry().items() if not issubclass(cls, CompositeStrategy)]


def make_strategy(name: str, /, **fields: object) -> Strategy:
    """The strategy `name` with these fields.

    Raises:
        UserError: an unknown strategy, a field that it does not have, or a value that a field cannot have.
    """
    if name not in known():
        raise UserError(f"unknown strategy {name!r}: choose one of {', '.join(known())}.{did_you_mean(name, known())}")
    made: Strategy = known()[name].checked(fields)
    return made


def strategy_options() -> dict[str, dataclasses.Field[Any]]:
    """The fields of all strategies, each of which is a flag; of those of one name the one whose help says most."""
    options: dict[str, dataclasses.Field[Any]] = {}
    for cls in known().values():
        for field in dataclasses.fields(cls):
            other = options.get(field.name, field)
            if len(field.metadata["help"]) >= len(other.metadata["help"]):
                options[field.name] = field
    return options


def parse(spec: str) -> Wanted:
    """A strategy as one types it, a name or a name with flags (`coarse --keep_patches 66`), and what was given of it.

    Raises:
        UserError: an unknown strategy or flag, or a value that a flag cannot have.
    """
    try:
        name, *flags = shlex.split(spec) or [""]
    except ValueError as error:
        raise UserError(f"{spec!r}: {str(error).lower()}; close the quotes") from error
    parser = _Parser(prog=spec, add_help=False)
    for field in strategy_options().values():
        add_flag(parser, field, argparse.SUPPRESS)
    given, unknown = parser.parse_known_args(flags)
    if unknown:
        raise UserError(f"{spec!r}: unknown {' '.join(unknown)}")
    fields = vars(given)
    return Wanted(make_strategy(name, **fields), tuple(fields))


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog!r}: {message}")


@dataclass(frozen=True)
class Wanted:
    """A strategy to try, and which of its fields were given: the others may be solved for or drawn."""

    strategy: Strategy
    given: tuple[str, ...]

    @classmethod
    def of(cls, what: str | Strategy | Wanted) -> Wanted:
        """Of a strategy's name, or of a strategy, whose fields that are no defaults were given."""
        if isinstance(what, Wanted):
            return what
        strategy = make_strategy(what) if isinstance(what, str) else what
        return cls(strategy, tuple(strategy.changed()))
