"""The page of a tuning: what it says to use, and everything that it searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anchorprune.report.table import MISSING, times
from anchorprune.report.templating import html

_MILLISECONDS = "ms a batch"  # where one batch was timed
COLUMNS = ["strategy", "points lost", "speed-up", _MILLISECONDS, "images/s", "GMACs", "chosen"]
NOTES = (
    "Points lost are those on the images of the search, against the unpruned model in the same pass; the best of many "
    "looks better on them than it is. What is expected of the chosen one stands above, from images that it was not "
    "chosen by. What has no points was too slow to be tried on images."
)


def render(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    headline: str,
    text: str,
    found: str | None,
    facts: Mapping[str, str],
    command: str,
) -> str:
    """The page as one HTML document, offline and without scripts; all text is plain text.

    Args:
        rows: what was searched, as `Tuned.rows` gives it.
        title: what was tuned; stands above the finding.
        headline: the finding in one line.
        text: what was found, in paragraphs.
        found: the command to use; None where nothing met the goal.
        facts: how it was measured, name -> value.
        command: what to type to get this page.
    """
    timed = any(row["milliseconds"] is not None for row in rows)
    return html(
        "tune.html",
        title=headline,
        kicker=title,
        findings=[" ".join(part.split()) for part in text.split("\n\n")],
        found=found or "",
        columns=[column for column in COLUMNS if timed or column != _MILLISECONDS],
        lines=[(row["strategy"], row["flags"], _cells(row, timed)) for row in rows],
        notes=[NOTES],
        facts=facts,
        command=command,
    )


def _cells(row: Mapping[str, Any], timed: bool) -> list[str]:
    return [
        _number(row["drop"], "+.2f"),
        times(row["speed_up"]),
        *([_number(row["milliseconds"], ".2f")] if timed else []),
        _number(row["images_per_second"], ".1f"),
        _number(row["gmacs"], ".2f"),
        "yes" if row["chosen"] else "",
    ]


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else format(value, form)
