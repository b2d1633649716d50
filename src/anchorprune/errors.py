"""The one exception that means "the input is wrong, not the program"."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any

# What torch says on a CPU; on CUDA it has an exception of its own.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
_LONG = 1000  # characters of a value in a sentence; a path has fewer
_SENTENCE = 2000  # characters of a sentence


class UserError(ValueError):
    """Bad input: one sentence that names the input and the fix.

    The command line prints it as one line and exits with code 2; any other exception is a fault of ours
    and shows a traceback (exit code 1). What it quotes may be of any length and have line ends: it stays one line.
    """

    def __init__(self, sentence: str = "") -> None:
        super().__init__(in_a_line(sentence))


class FieldError(UserError):
    """A field of a strategy, a task or a request, or the flag of the same name, has a value that it cannot have."""

    def __init__(self, field: str, value: object, fix: str, *, typed: str | None = None) -> None:
        """`typed`: the fix for somebody who typed a flag, where it names fields."""
        # a key of JSON that is no field may be anything
        field = field if field.isprintable() and len(field) <= 100 else ascii(field[:100])
        super().__init__(f"{field}={_short(repr, value)}: {fix}")
        self.field, self.value, self.fix, self.typed = field, value, fix, typed or fix

    def __reduce__(self) -> tuple[Any, ...]:
        """It travels between processes; an exception alone would be made anew of its one sentence."""
        return partial(FieldError, typed=self.typed), (self.field, self.value, self.fix)

    def as_flag(self) -> str:
        """The same sentence for somebody who typed a flag."""
        values = self.value if isinstance(self.value, (tuple, list)) else (self.value,)
        return in_a_line(f"--{self.field} {' '.join(_short(str, value) for value in values)}: {self.typed}")


def in_a_line(sentence: str) -> str:
    """The sentence without line ends; of a very long one its beginning, which names the input, and its end, the fix."""
    line = " ".join(sentence.splitlines())
    return line if len(line) <= _SENTENCE else f"{line[: _SENTENCE - 600]} … {line[-500:]}"


def _short(spell: Callable[[object], str], value: object) -> str:
    """The value in a sentence, of what is very long its beginning."""
    if isinstance(value, int) and value.bit_length() > 1000:  # Python refuses to write larger ones down
        return f"a number of {value.bit_length()} bits"
    text = spell(value)
    return text if len(text) <= _LONG else f"{text[:_LONG]}…"


class Unwritten(UserError, OSError):
    """A file could not be written: the disk is full, or was taken away. What it would have held is not there."""

    def __init__(self, path: object, error: OSError) -> None:
        self.path, self.errno, self.strerror = path, error.errno, error.strerror or str(error)
        ValueError.__init__(self, f"{path}: cannot be written ({self.strerror})")

    def __str__(self) -> str:
        return str(self.args[0])

    def __reduce__(self) -> tuple[Any, ...]:
        return Unwritten, (self.path, OSError(self.errno, self.strerror))


class FieldWarning(UserWarning):
    """A warning that names fields; the command line says `typed` instead, which names flags."""

    def __init__(self, text: str, typed: str) -> None:
        super().__init__(text, typed)
        self.typed = typed

    def __str__(self) -> str:
        return str(self.args[0])


def of_the_machine(error: Exception) -> UserError | None:
    """What this machine has not, memory or a file that can be had, as a sentence; None for any other exception."""
    if isinstance(error, OSError) and isinstance(error.filename, (str, bytes)):
        return UserError(f"{os.fsdecode(error.filename)}: {error.strerror or error}; name another file or folder")
    is_torchs = isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or any(said in str(error) for said in _NO_MEMORY)
    )
    if not is_torchs and not isinstance(error, MemoryError):
        return None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    what = f" ({lines[-1][:200]})" if lines else ""  # such as: Unable to allocate 36.4 TiB for an array
    return UserError(f"there is not enough memory{what}; ask for less at once, such as a smaller batch_size")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the known name closest to `name`, or an empty string."""
    close = get_close_matches(name[:100], list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
