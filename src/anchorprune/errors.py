"""The one exception that means "the input is wrong, not the program"."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any


class UserError(ValueError):
    """Bad input: one sentence that names the input and the fix.

    The command line prints it as one line and exits with code 2; any other exception is a fault of ours
    and shows a traceback (exit code 1).
    """


class FieldError(UserError):
    """A field of a strategy, a task or a request, or the flag of the same name, has a value that it cannot have."""

    def __init__(self, field: str, value: object, fix: str, *, typed: str | None = None) -> None:
        """`typed`: the fix for somebody who typed a flag, where it names fields."""
        super().__init__(f"{field}={value!r}: {fix}")
        self.field, self.value, self.fix, self.typed = field, value, fix, typed or fix

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels between processes; an exception alone would be made anew of its one sentence."""
        return partial(FieldError, typed=self.typed), (self.field, self.value, self.fix)

    def as_flag(self) -> str:
        """The same sentence for somebody who typed a flag."""
        value = " ".join(map(str, self.value)) if isinstance(self.value, (tuple, list)) else self.value
        return f"--{self.field} {value}: {self.typed}"


class FieldWarning(UserWarning):
    """A warning that names fields; the command line says `typed` instead, which names flags."""

    def __init__(self, text: str, typed: str) -> None:
        super().__init__(text, typed)
        self.typed = typed

    def __str__(self) -> str:
        return str(self.args[0])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    close = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
