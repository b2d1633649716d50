"""The shapes that signatures promise, checked wherever the tests call them.

Not by jaxtyping's import hook, because what torch.compile traces has to stay as it is: there nothing is checked.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

import beartype
import jaxtyping
import torch


def check_shapes(*packages: str) -> int:
    """Wrap every function of these packages whose signature has a shape, wherever it is known by name; how many."""
    modules = [
        importlib.import_module(f"{package}.{module.name}")
        for package in packages
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__)
    ]
    count = 0
    for module in modules:
        own = [thing for thing in vars(module).values() if getattr(thing, "__module__", None) == module.__name__]
        for cls in [thing for thing in own if inspect.isclass(thing)]:
            for name, method in list(vars(cls).items()):
                if _has_shape(method):
                    setattr(cls, name, _checked(method))
                    count += 1
        for function in [thing for thing in own if _has_shape(thing)]:
            wrapped = _checked(function)
            count += 1
            for other in [m for name, m in sys.modules.items() if name.startswith("anchorprune")]:
                for name in [name for name, thing in vars(other).items() if thing is function]:
                    setattr(other, name, wrapped)
    return count


def _has_shape(thing: Any) -> bool:
    return inspect.isfunction(thing) and any("[Tensor, " in str(a) or "Mask" in str(a) for a in _annotations(thing))


def _annotations(function: Callable[..., Any]) -> list[Any]:
    return list(getattr(function, "__annotations__", {}).values())


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    checked = jaxtyping.jaxtyped(typechecker=beartype.beartype)(function)

    @functools.wraps(function)
    def either(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs) if torch.compiler.is_compiling() else checked(*args, **kwargs)

    return either
