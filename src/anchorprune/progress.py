"""How far long work is: a bar on a terminal, a line every so often elsewhere, or a JSON object a line. No torch."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TextIO

from anchorprune.errors import FieldError
from anchorprune.terminal import printable

FORMATS = ("text", "json")


@dataclass(frozen=True)
class Reporting:
    """How one wants to be told.

    Attributes:
        log_every: seconds between two lines where there is no terminal, or with `json`; 0: no lines.
        log_format: `text`, or `json`: an object a line, on a terminal too.
        quiet: not at all.
    """

    log_every: float = 30.0
    log_format: str = "text"
    quiet: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.log_every < float("inf"):
            raise FieldError("log_every", self.log_every, "give seconds, or 0 for no lines")
        if self.log_format not in FORMATS:
            raise FieldError("log_format", self.log_format, f"choose one of {', '.join(FORMATS)}")

    def of(self, what: str, total: int | None, *, done: int = 0, unit: str = "image", leave: bool = True) -> Progress:
        """The progress of `what`, of which `done` of `total` were there before; on standard error.

        Args:
            total: None where nobody knows.
            unit: what is counted, in the singular; a `byte` is shown in MB.
            leave: whether the bar stays when the work is done.
        """
        return Progress(self, what, total, done, unit, sys.stderr, leave=leave)


QUIET = Reporting(quiet=True)
BARS = Reporting(log_every=0)  # and without a terminal nothing
_how: ContextVar[Reporting] = ContextVar("reporting", default=BARS)


@contextmanager
def telling(how: Reporting) -> Iterator[None]:
    """What is opened within may take long, by a download, and tells so."""
    before = _how.set(how)
    try:
        yield
    finally:
        _how.reset(before)


def as_told() -> Reporting:
    """How the caller of what opens data wants to be told; bars, where nobody has said it."""
    return _how.get()


def reporting_of(progress: bool | Reporting) -> Reporting:
    """What `progress` means in calls that take both: True, a bar where standard error is a terminal; False, nothing."""
    return progress if isinstance(progress, Reporting) else BARS if progress else QUIET


class Progress:
    """One piece of work of known length. Use it in a `with` block and say `update` of each batch."""

    def __init__(
        self,
        how: Reporting,
        what: str,
        total: int | None,
        done: int,
        unit: str,
        stream: TextIO,
        clock: Callable[[], float] = time.monotonic,
        leave: bool = True,
    ) -> None:
        self.how, self.what, self.total, self.done, self.unit = how, printable(what), total, done, unit
        self._stream, self._clock = stream, clock
        self._start = self._told = clock()
        self._before = done
        self._bar: Any = None
        self._lines = bool(how.log_every) and not how.quiet
        if how.log_format == "text" and not how.quiet and stream.isatty():
            from tqdm import tqdm

            self._lines = False
            large = unit == "byte"
            self._bar = tqdm(
                total=total,
                initial=done,
                unit="B" if large else unit,
                unit_scale=large,
                desc=what,
                smoothing=0.05,
                file=stream,
                leave=leave,
            )

    def update(self, n: int) -> None:
        """So many more are done."""
        self.done += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._lines and self._clock() - self._told >= self.how.log_every:
            self._told = self._clock()
            self._tell("progress")

    @property
    def per_second(self) -> float:
        """Of what was done here, not before."""
        return (self.done - self._before) / max(self._clock() - self._start, 1e-9)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._lines and (self._told > self._start or self.how.log_format == "json"):  # short work needs no line
            self._tell("stopped" if error else "finished")

    def _tell(self, event: str) -> None:
        rate = self.per_second
        left = (self.total - self.done) / rate if rate and self.total is not None else None
        if self.how.log_format == "json":
            line = json.dumps(
                {
                    "event": event,
                    "what": self.what,
                    "unit": self.unit,
                    "done": self.done,
                    "total": self.total,
                    "per_second": round(rate, 3),
                    "seconds": round(self._clock() - self._start, 3),
                    "seconds_left": None if left is None else round(left, 1),
                }
            )
        else:
            line = f"{self.what}: {self._amount(rate)}"
            if event == "progress" and left is not None:
                line += f", {_span(left)} left"
            elif event == "stopped":
                line += ", stopped"
        print(line, file=self._stream, flush=True)

    def _amount(self, rate: float) -> str:
        """`200 of 1,000 images, 10.0 images/s`, or `1.5 of 2.0 MB, 0.5 MB/s`."""
        large = self.unit == "byte"
        unit = "MB" if large else f"{self.unit}s"
        done, total = (
            None if count is None else f"{count / 1e6:,.1f}" if large else f"{count:,}"
            for count in (self.done, self.total)
        )
        of_total = "" if total is None else f" of {total}"
        return f"{done}{of_total} {unit}, {rate / (1e6 if large else 1):.1f} {unit}/s"


def _span(seconds: float) -> str:
    """`40 s`, `12 min`, `3.5 h`, `2.1 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
