"""What was found: said in a line, and not lost where its file cannot be written."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from anchorprune.commands._flags import say
from anchorprune.errors import Unwritten, UserError


@contextmanager
def noted(lost: list[Unwritten]) -> Iterator[None]:
    """What cannot be written within is added to `lost`."""
    try:
        yield
    except Unwritten as error:
        lost.append(error)


def all_of(lost: Sequence[Unwritten]) -> UserError:
    """One sentence of all, where what was found has been printed."""
    named, more = lost[:3], len(lost) - 3
    said = "; ".join(map(str, named)) + (f"; and {more} more" if more > 0 else "")
    return UserError(f"{said}; what was found is printed above")


def kept(args: argparse.Namespace, text: str, save: Callable[[], object]) -> None:
    """Say what was found, and write it whether that can be said or not; where it cannot be written, `--quiet` is over.

    Raises:
        UserError: it cannot be written.
    """
    try:
        say(args, text)
    finally:
        try:
            save()
        except Unwritten as error:
            if not args.verbose:
                print(text, flush=True)
            raise all_of([error]) from error


def summary(result: dict[str, Any]) -> str:
    """The result in one line."""
    known = {name: value for name, value in result["metrics"].items() if not math.isnan(value)}  # acc5 of 4 classes
    metrics = ", ".join(f"{name} {_shown(name, value)}" for name, value in known.items())
    line = f"{metrics} on {result['n_samples']} of {result['n_total']} images"
    if result["n_bad_images"]:
        line += f" ({result['n_bad_images']} unreadable)"
    if result["pruning"]:
        measured = result["pruning"]["measured"]
        line += f"; {measured['tokens_after']} of {measured['tokens_before']} tokens"
    if (gmacs := result["cost"]["gmacs"]) is not None:
        dense = result["cost"]["gmacs_dense"]
        line += f"; {gmacs:.2f} GMACs" if gmacs == dense else f"; {gmacs:.2f} of {dense:.2f} GMACs"
    return f"{line}; {result['cost']['images_per_second']:.1f} images/s"


def _shown(name: str, value: Any) -> str:
    """A metric; what is no share says how it was come by, as weight decay does."""
    return f"{value:.4f}" if isinstance(value, float) and name != "weight_decay" else f"{value}"
