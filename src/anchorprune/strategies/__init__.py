"""The strategies by name. Each lives in a file of this folder, or of another package that says so by an entry point.

None imports torch on import.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from importlib.metadata import entry_points

from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.strategies.base import Strategy

ENTRY_POINTS = "anchorprune.strategies"
# What `prune` takes when no strategy is named: the most accurate for its compute (docs/method.md).
RECOMMENDED = "coarse"


@functools.cache
def registry() -> dict[str, type[Strategy]]:
    """Every strategy of this folder and of installed packages, by name.

    Raises:
        UserError: a package's strategy cannot be imported, is none, or has a name that is taken.
    """
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    known = {cls.name: cls for cls in sorted(_concrete(Strategy), key=lambda cls: cls.name)}  # type: ignore[type-abstract]
    for entry in sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name):
        try:
            cls = entry.load()
        except Exception as error:  # whatever another package's code raises
            reason = " ".join(str(error).split())
            raise UserError(f"strategy {entry.name!r} ({entry.value}) cannot be loaded: {reason}") from error
        if not (inspect.isclass(cls) and issubclass(cls, Strategy) and not inspect.isabstract(cls)):
            raise UserError(f"strategy {entry.name!r} ({entry.value}): is no complete subclass of Strategy")
        name = getattr(cls, "name", None)
        if name != entry.name or known.get(cls.name, cls) is not cls:
            raise UserError(f"strategy {entry.name!r} ({entry.value}): its name {name!r} is taken or another")
        known[cls.name] = cls
    return known


def _concrete(cls: type[Strategy]) -> Iterator[type[Strategy]]:
    """The strategies of this folder; what a package brings counts by its entry point alone."""
    for sub in cls.__subclasses__():
        if not inspect.isabstract(sub) and sub.__module__.startswith(__name__):
            yield sub
        yield from _concrete(sub)


def make_strategy(name: str, **fields: object) -> Strategy:
    """The strategy `name` with these fields.

    Raises:
        UserError: an unknown strategy, a field that it does not have, or a value that a field cannot have.
    """
    if name not in registry():
        known = ", ".join(registry())
        raise UserError(f"unknown strategy {name!r}: choose one of {known}.{did_you_mean(name, registry())}")
    cls = registry()[name]
    own = [field.name for field in dataclasses.fields(cls)]
    for field, value in fields.items():
        if field not in own:
            raise FieldError(field, value, f"strategy {name!r} has no such field; it has {', '.join(own)}")
    return cls(**fields)  # the names were checked above, the values check themselves
