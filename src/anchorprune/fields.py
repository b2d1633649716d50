"""Frozen dataclasses whose fields are also flags and JSON: strategies and tasks.

A field's default says of what kind it is; its help and what a string may be stand beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

from anchorprune.errors import FieldError

LARGEST = (1 << 63) - 1  # that fits in the whole numbers of torch
_TYPES: dict[str, type] = {"str": str, "int": int, "float": Real, "bool": bool, "None": type(None)}
_SAID = {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false", "None": "null"}


def option(
    default: Any, help: str, choices: Sequence[str] | None = None, kind: type | None = None, file: bool = False
) -> Any:
    """A dataclass field that is also a flag: `help` says what it is, `choices` what a string may be.

    Args:
        kind: of each value of a tuple, which is a flag that takes several; of the value where the default is None.
        file: whether it names a file, or several, whose content decides and not its name.
    """
    metadata = {"help": help, "choices": choices, "kind": kind, "file": file}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Fields:
    """What strategies and tasks share. The first line of a subclass's docstring is what `--help` says of it."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata.get("choices")
            if choices and value not in choices:
                raise FieldError(field.name, value, f"choose one of {', '.join(choices)}")
            if isinstance(field.default, tuple):
                values = value if isinstance(value, (tuple, list)) else (value,)
                one = field.metadata["kind"]
                object.__setattr__(self, field.name, tuple(_number(field.name, each, one) for each in values))
            elif isinstance(field.default, bool):
                if not isinstance(value, bool):
                    raise FieldError(field.name, value, "must be True or False")
            elif isinstance(field.default, (int, float)):
                object.__setattr__(self, field.name, _number(field.name, value, type(field.default)))
            elif isinstance(field.default, str) and not isinstance(value, str):
                raise FieldError(field.name, value, "must be a text")
            elif field.default is None and value is not None:
                object.__setattr__(self, field.name, _number(field.name, value, field.metadata["kind"]))

    def values(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in dataclasses.asdict(self).items()
        }

    def by_content(self, content: Callable[[str], Any]) -> dict[str, Any]:
        """`values`, with what `content` gives of a file (its fingerprint, say) in place of its name."""
        found = self.values()
        for field in dataclasses.fields(self):
            if field.metadata.get("file") and (value := found[field.name]) is not None:
                found[field.name] = list(map(content, value)) if isinstance(value, list) else content(value)
        return found

    def changed(self) -> dict[str, Any]:
        """The fields that are not their defaults."""
        own = {field.name: (getattr(self, field.name), field.default) for field in dataclasses.fields(self)}
        return {name: value for name, (value, default) in own.items() if value != default}

    def apart_from(self, other: Fields) -> dict[str, Any]:
        """The fields in which this differs from another of its kind, and that are given here."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in own.items() if value not in ((), getattr(other, name))}

    def flags(self, only: Mapping[str, Any] | None = None) -> str:
        """What to type for this where its fields are not the defaults, in a shell; or for these fields of it."""
        return " ".join(
            f"--{name} {typed(value)}" for name, value in (self.changed() if only is None else only).items()
        )

    def spelled(self, only: Mapping[str, Any] | None = None) -> str:
        """`flags` as one writes them in Python: `keep_patches=66, gamma=0.5`."""
        changed = (self.changed() if only is None else only).items()
        return ", ".join(f"{k}={v[0] if isinstance(v, tuple) and len(v) == 1 else v!r}" for k, v in changed)

    @classmethod
    def checked(cls, given: Mapping[str, Any]) -> Any:
        """One with these fields.

        Raises:
            FieldError: a field that it does not have, or a value that a field cannot have.
        """
        own = [field.name for field in dataclasses.fields(cls)]
        for name, value in given.items():
            if name not in own:
                has = f"it has {', '.join(own)}" if own else "it has none"
                raise FieldError(name, value, f"{_kind(cls)} {cls.name!r} has no such field; {has}")
        return cls(**given)


def add_flag(
    parser: argparse._ActionsContainer, field: dataclasses.Field[Any], default: Any, said: str | None = None
) -> None:
    """A field as a flag, with what is `said` behind its help."""
    several = isinstance(field.default, tuple)
    kind = field.metadata["kind"] if several or field.default is None else type(field.default)
    parser.add_argument(
        f"--{field.name}",
        type=true_or_false if kind is bool else kind,
        nargs="+" if several else None,
        default=default,
        metavar=kind.__name__.upper(),
        help=f"{field.metadata['help']} ({said})" if said is not None else field.metadata["help"],
    )


def true_or_false(text: str) -> bool:
    """What a flag says; clip-benchmark takes every word for true, `False` too, and only an empty one for false."""
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False, "": False}
    if text.lower() not in known:
        raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")
    return known[text.lower()]


def typed(value: Any) -> str:
    """A field's value as one types it after its flag, in a shell."""
    return shlex.join(map(str, value)) if isinstance(value, tuple) else shlex.quote(str(value))


def _kind(cls: type[Fields]) -> str:
    """Strategy or task: the class next to `Fields` among the ancestors."""
    line = cls.__mro__
    return line[line.index(Fields) - 1].__name__.lower()


def _number(name: str, value: Any, kind: type) -> Any:
    """One kind of number whatever came in (a NumPy integer, 1 for 1.0), so that equal settings are equal."""
    if kind is str:
        if not isinstance(value, (str, os.PathLike)):
            raise FieldError(name, value, "must be a text")
        return str(value)
    whole = kind is int
    if not isinstance(value, Integral if whole else Real) or isinstance(value, bool):
        raise FieldError(name, value, f"must be a {'whole ' if whole else ''}number")
    number: Any = value
    if isinstance(value, Integral):
        check_range(name, int(number))
    return int(number) if whole else float(number)


def check_range(name: str, value: int, low: int = -LARGEST - 1, high: int = LARGEST, fix: str = "") -> None:
    """FieldError, with this fix, for a whole number that is out of its range, which is that of 64 bits."""
    if not low <= value <= high:
        raise FieldError(name, value, fix or f"must be from {low} to {high}")


def check_types(of: Any) -> None:
    """FieldError where a field of a dataclass that was read holds another type than it is declared with.

    Texts, numbers, True or False, and None are looked at.
    """
    for field in dataclasses.fields(of):
        declared, value = str(field.type).split(" | "), getattr(of, field.name)
        kinds = [_TYPES[name] for name in declared if name in _TYPES]
        if len(kinds) == len(declared) and not any(
            isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for kind in kinds
        ):
            raise FieldError(field.name, value, f"must be {' or '.join(_SAID[name] for name in declared)}")
        if isinstance(value, str) and "\0" in value:
            raise FieldError(field.name, value, "holds a NUL byte; no name has one")
