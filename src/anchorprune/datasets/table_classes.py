"""The labels of a table as class indices, with the names of the classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

from anchorprune.datasets import prompts
from anchorprune.datasets.base import MOST_CLASSES, DataSpec
from anchorprune.datasets.reading import read_lines
from anchorprune.datasets.rows import ParquetTable, Table
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.reading import whole_number

_NUMBER = re.compile(r"([+-]?\d+)(\.0*)?")  # pandas writes 3 as 3.0 where another row has no value


class Labels(Protocol):
    """What is in the column of labels: of each sample and where it stands, and all that there is in any split."""

    values: list[Any]
    places: list[str]
    seen: set[Any]


class Classes:
    """Labels as class indices.

    Attributes:
        names: by index; None where nothing says them.
        kind: "classes", or "labels" where a sample may have several.
        targets: of each sample.
    """

    def __init__(self, spec: DataSpec, table: Table, column: str, labels: Labels) -> None:
        given = _given_names(spec, table, column)
        try:
            numbered = {label: _number(label) for label in labels.seen}
        except UserError as error:
            raise FieldError("dataset", spec.name, str(error)) from error
        index = {label: number for label, number in numbered.items() if number is not None}
        if len(index) < len(numbered):
            index = _by_name(spec, labels.seen, given)
            given = given or sorted(map(str, index))
        self.names = given
        several = [isinstance(value, tuple) for value in labels.values]
        if any(several) and not all(several):
            raise UserError(
                f"{labels.places[several.index(False)]}: has one label where other rows have a list; use lists"
            )
        self.kind = "labels" if any(several) else "classes"
        count = len(given) if given else 1 + max(index.values(), default=0)
        if count > MOST_CLASSES:
            raise FieldError(
                "dataset", spec.name, f"has the label {count - 1}; at most {MOST_CLASSES:,} classes can be"
            )
        self.targets: list[Any] = []
        for value, place in zip(labels.values, labels.places, strict=True):
            numbers = [index[each] for each in (value if isinstance(value, tuple) else [value])]
            if numbers and not 0 <= min(numbers) <= max(numbers) < count:
                raise UserError(f"{place}: the label {value!r} has no class; there are {count} class names, from 0 on")
            self.targets.append(_one_hot(numbers, count) if self.kind == "labels" else numbers[0])


def is_index(label: Any) -> bool:
    """Whether what is no text may be the number of a class."""
    if isinstance(label, float):
        return label.is_integer() and abs(label) < MOST_CLASSES
    return isinstance(label, int) and not isinstance(label, bool)


def _number(label: Any) -> int | None:
    """The class index that a label is, or None for a name. UserError for more digits than a number has."""
    if not isinstance(label, str):
        return int(label)
    if (match := _NUMBER.fullmatch(label.strip())) is None:
        return None
    try:
        return whole_number(match[1])
    except ValueError as error:
        raise UserError(f"the label {error}; a class index is smaller") from error


def _by_name(spec: DataSpec, seen: set[Any], given: list[str] | None) -> dict[Any, int]:
    """Each class name's index: its place among the given ones, or, if they are as many, among the sorted own ones."""
    own = sorted(map(str, seen))
    if given is None:
        if "{split}" in spec.name:
            fix = (
                "its labels are class names, which may differ from split to split: list all in classnames.txt beside it"
            )
            raise FieldError("dataset", spec.name, fix)
        given = own
    if set(own) <= set(given):
        twice = next((name for name in own if given.count(name) > 1), None)
        if twice is not None:
            raise FieldError("dataset", spec.name, f"two classes are called {twice!r}; write indices instead of names")
        return {label: given.index(str(label)) for label in seen}
    if len(given) != len(own):
        odd = next(name for name in own if name not in given)
        fix = f"its {len(own)} labels and the {len(given)} class names do not match: {odd!r} is none of them"
        raise FieldError("dataset", spec.name, f"{fix}.{did_you_mean(odd, given)}")
    return {label: own.index(str(label)) for label in seen}


def _given_names(spec: DataSpec, table: Table, column: str) -> list[str] | None:
    """Class names by index: one's own file, `classnames.txt` beside the table, or what the Parquet file says."""
    if spec.classnames:
        return prompts.custom_classes(spec.classnames, spec.name)
    file = table.file.parent / "classnames.txt"
    if file.exists():
        return [line for line in read_lines(file) if line]
    return table.class_names.get(column) if isinstance(table, ParquetTable) else None


def _one_hot(numbers: Sequence[int], count: int) -> Any:
    import torch

    target = torch.zeros(count)
    target[list(numbers)] = 1
    return target
