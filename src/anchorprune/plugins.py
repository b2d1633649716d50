"""What can be added from outside, each in one file: strategies, towers, data sets, tasks.

A folder of this package holds ours, an entry-point group names those of other packages; both are subclasses of one
base class with a `name`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar

from anchorprune.errors import UserError

T = TypeVar("T")


def found(base: type[T], package: str) -> dict[str, type[T]]:
    """The complete subclasses of `base` by name: ours, sorted, then those of other packages.

    Ours are in the modules of the package (`__path__`, so that a folder may be added to it); those of others are named
    by an entry point of the group that is called like the package.

    Raises:
        UserError: what another package names cannot be imported, is none, or has a name that is taken. It names the
            package.
    """
    ours = {}
    for module in pkgutil.iter_modules(sys.modules[package].__path__):
        for thing in vars(importlib.import_module(f"{package}.{module.name}")).values():
            if _is_complete(thing, base) and thing.__module__.startswith(package) and "name" in vars(thing):
                ours[thing.name] = thing
    known: dict[str, type[T]] = dict(sorted(ours.items()))
    for entry in sorted(entry_points(group=package), key=lambda entry: entry.name):
        cls = _loaded(entry, base)
        name = getattr(cls, "name", None)
        if name != entry.name or known.get(entry.name, cls) is not cls:
            raise UserError(f"{_called(entry, base)}: its name {name!r} is taken or another")
        known[entry.name] = cls
    return known


def _loaded(entry: EntryPoint, base: type[T]) -> type[T]:
    try:
        cls = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # whatever another package's code raises; sys.exit(0) would end us in silence
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{_called(entry, base)} cannot be loaded: {reason}") from error
    if not _is_complete(cls, base):
        raise UserError(f"{_called(entry, base)}: is no complete subclass of {base.__name__}")
    complete: type[T] = cls
    return complete


def _is_complete(thing: Any, base: type) -> bool:
    is_class = issubclass(type(thing), type)  # to inspect.isclass of Python 3.10 `dict[str, int]` is one too
    return is_class and issubclass(thing, base) and not inspect.isabstract(thing)


def _called(entry: EntryPoint, base: type) -> str:
    package = f" of the package {entry.dist.name}" if entry.dist else ""
    return f"{base.__name__.lower()} {entry.name!r}{package} ({entry.value})"
