"""The strategies by name. Each lives in a file of this folder and is found there; none imports torch on import."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil

from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.strategies.base import Strategy


@functools.cache
def registry() -> dict[str, type[Strategy]]:
    """Every strategy of this folder, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {cls.name: cls for cls in sorted(Strategy.__subclasses__(), key=lambda cls: cls.name)}


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
    return cls(**fields)  # type: ignore[arg-type]  # the names were checked above, the values check themselves
