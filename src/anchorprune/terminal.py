"""What a terminal is given: text that is shown, and nothing that it would obey."""

from __future__ import annotations

import codecs
import io
import re
import shutil
import sys
from contextlib import suppress
from typing import Any, TextIO

from anchorprune.errors import UserError

# Control characters but for line ends and tabs, what turns the direction of writing, halves of surrogate pairs.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


# How our own signs are written where a terminal has ASCII alone; what names hold beside them becomes `?`.
_PLAIN = {"…": "...", "×": "x", "–": "-", "−": "-", "·": "*", "±": "+/-", "≥": ">=", "≤": "<=", "→": "->", "’": "'"}
_SPELT = "anchorprune.spelt"


def _spell(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(sign, "?") for sign in error.object[error.start : error.end]), error.end


codecs.register_error(_SPELT, _spell)


def speak_its_encoding(stream: TextIO | None) -> None:
    """What the stream cannot show must not end in a traceback after the work, nor as `\\u2026`."""
    if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape", "backslashreplace"):
        with suppress(OSError):
            stream.reconfigure(errors=_SPELT)


def line_width(most: int = 10_000) -> int:
    """How wide lines may be: the terminal's width, `most` where it is wider or standard output is none."""
    if sys.stdout is None or not sys.stdout.isatty():
        return most
    return min(most, max(40, shutil.get_terminal_size((most, 24)).columns))


def printable(text: str) -> str:
    r"""The text with such characters spelt out, `\x1b` for an escape: names come from anywhere and hold anything."""
    return _OBEYED.sub(lambda found: ascii(found[0])[1:-1], text)


class Unsaid(UserError):
    """Standard output cannot be written."""


class Printable:
    """A text stream that is given what is `printable`.

    Raises:
        BrokenPipeError: nobody reads it any more.
        Unsaid: it cannot be written.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._left: BrokenPipeError | None = None

    def write(self, text: str) -> int:
        try:
            self._stream.write(printable(text))
        except BrokenPipeError as error:
            self._left = error  # for `flush`: argparse passes over it here
            raise
        except OSError as error:
            raise _unsaid(error) from error
        return len(text)

    def flush(self) -> None:
        if self._left:
            raise self._left
        try:
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _unsaid(error) from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _unsaid(error: OSError) -> Unsaid:
    return Unsaid(f"standard output cannot be written ({error.strerror or error}); files that are finished are there")
