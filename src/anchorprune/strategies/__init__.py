"""The strategies by name. Each lives in a file of this folder, or of another package that says so by an entry point.

None imports torch on import.
"""

from __future__ import annotations

import functools

from anchorprune import plugins
from anchorprune.errors import UserError, did_you_mean
from anchorprune.strategies.base import Strategy

# What `prune` takes when no strategy is named: the most accurate for its compute (docs/method.md).
RECOMMENDED = "coarse"


@functools.cache
def registry() -> dict[str, type[Strategy]]:
    """Every strategy of this folder and of installed packages, by name. UserError as in `plugins.found`."""
    return plugins.found(Strategy, __name__)  # type: ignore[type-abstract]


def make_strategy(name: str, **fields: object) -> Strategy:
    """The strategy `name` with these fields.

    Raises:
        UserError: an unknown strategy, a field that it does not have, or a value that a field cannot have.
    """
    if name not in registry():
        known = ", ".join(registry())
        raise UserError(f"unknown strategy {name!r}: choose one of {known}.{did_you_mean(name, registry())}")
    made: Strategy = registry()[name].checked(fields)
    return made
