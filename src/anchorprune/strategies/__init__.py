"""The strategies by name. Each lives in a file of this folder, or of another package that says so by an entry point.

None imports torch on import.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from anchorprune import plugins
from anchorprune.errors import UserError, did_you_mean
from anchorprune.strategies.base import CompositeStrategy, Strategy

# What `prune` takes when no strategy is named: the most accurate for its compute (docs/method.md).
RECOMMENDED = "coarse"


@functools.cache
def registry() -> dict[str, type[Strategy]]:
    """Every strategy of this folder and of installed packages, by name. UserError as in `plugins.found`."""
    return plugins.found(Strategy, __name__)  # type: ignore[type-abstract]


def standalone() -> list[str]:
    """The names of those that are made of no others, and so need nothing but a budget."""
    return [name for name, cls in registry().items() if not issubclass(cls, CompositeStrategy)]


def make_strategy(name: str, /, **fields: object) -> Strategy:
    """The strategy `name` with these fields.

    Raises:
        UserError: an unknown strategy, a field that it does not have, or a value that a field cannot have.
    """
    if name not in registry():
        known = ", ".join(registry())
        raise UserError(f"unknown strategy {name!r}: choose one of {known}.{did_you_mean(name, registry())}")
    made: Strategy = registry()[name].checked(fields)
    return made


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
