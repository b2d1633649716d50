"""The tasks, one file each: what is measured. Importing them imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from anchorprune import plugins
from anchorprune.errors import UserError, did_you_mean
from anchorprune.tasks.base import Task


@functools.cache
def registry() -> dict[str, type[Task]]:
    """Every task of this folder and of installed packages, by name. UserError as in `plugins.found`."""
    return plugins.found(Task, __name__)  # type: ignore[type-abstract]


def make_task(name: str, /, **fields: object) -> Task:
    """The task `name` with these fields.

    Raises:
        UserError: an unknown task, a field that it does not have, or a value that a field cannot have.
    """
    if name not in registry():
        known = ", ".join(registry())
        raise UserError(f"unknown task {name!r}: choose one of {known}.{did_you_mean(name, registry())}")
    made: Task = registry()[name].checked(fields)
    return made


def task_from_dict(content: Mapping[str, Any]) -> Task:
    """The task that `Task.as_dict` gave. UserError as in `make_task`."""
    return make_task(str(content.get("task")), **{key: value for key, value in content.items() if key != "task"})
