"""The page of a tuning: what it says to use, and everything that it searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anchorprune.report.table import MISSING, times
from anchorprune.report.templating import html

COLUMNS = ["strategy", "points lost", "speed-up", "images/s", "GMACs", "chosen"]
NOTES = (
    "Points lost are those on the images of the search, against the unpruned model in the same pass; the best of many "
    "looks better on them than it is. What is expected of the chosen one stands above, from images that it was not "
    "chosen by."
)


def render(
    rows: Sequence[Mapping[str, Any]],
    *,
    title: str,
    text: str,
    found: str | None,
    facts: Mapping[str, str],
    command: str,
) -> str:
    """The page as one HTML document, offline and without scripts; all text is plain text.

    Args:
        rows: what was searched, as `Tuned.rows` gives it.
        title: what was tuned; stands above the finding.
        text: what was found, in paragraphs.
        found: the command to use; None where nothing met the goal.
        facts: how it was measured, name -> value.
        command: what to type to get this page.
    """
    chosen = next((row for row in rows if row["chosen"]), None)
    return html(
        "tune.html",
        title=f"{_title(chosen)} meets the goal" if chosen else "Nothing that was tried meets the goal",
        kicker=title,
        findings=[" ".join(part.split()) for part in text.split("\n\n")],
        found=found or "",
        columns=COLUMNS,
        lines=[(row["strategy"], row["flags"], _cells(row)) for row in rows],
        notes=[NOTES],
        facts=facts,
        command=command,
    )


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['strategy']} {row['flags']}".rstrip()


def _cells(row: Mapping[str, Any]) -> list[str]:
    gmacs, rate = row["gmacs"], row["images_per_second"]
    return [
        f"{row['drop']:+.2f}",
        times(row["speed_up"]),
        MISSING if rate is None else f"{rate:.1f}",
        MISSING if gmacs is None else f"{gmacs:.2f}",
        "yes" if row["chosen"] else "",
    ]
