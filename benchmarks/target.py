"""What the benchmarks have in common: a ratio, its target, an exit code, and one line for what is not there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

_missed: list[str] = []


def hold(what: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
    """Print a measured value beside its target, and remember whether it missed it."""
    if at_least is not None:
        met, target = value >= at_least, f"at least {at_least:g}"
    else:
        assert at_most is not None
        met, target = value <= at_most, f"at most {at_most:g}"
    print(f"{'met   ' if met else 'MISSED'} {what}: {value:.3f} (target {target})", flush=True)
    if not met:
        _missed.append(what)


def leave() -> None:
    """End the program: exit code 1 where a target was missed."""
    sys.exit(1 if _missed else 0)


def run(main: Callable[[], object]) -> None:
    """The program. What is wrong with its flags, or not there, ends it in one line with exit code 2."""
    from anchorprune.errors import FieldError, UserError

    try:
        main()
    except UserError as error:
        said = error.as_flag() if isinstance(error, FieldError) else str(error)
        print(f"{Path(sys.argv[0]).name}: error: {said}", file=sys.stderr)
        sys.exit(2)
