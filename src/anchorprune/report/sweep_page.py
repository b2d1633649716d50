"""The page of a sweep: what it found in words, accuracy against compute and speed, every configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from anchorprune.report import sweep_chart
from anchorprune.report.frontier import (
    Cost,
    Measured,
    cells,
    columns,
    in_order,
    metric,
    numbered,
    places,
    signed,
    speed_up,
    unpruned,
)
from anchorprune.report.table import times
from anchorprune.report.templating import html

MARGIN = 0.01  # what may be lost for a pruning to count as nearly free: one point


def render(points: Sequence[Measured], *, title: str, facts: Mapping[str, str], command: str) -> str:
    """The page as one HTML document, offline and without scripts; all text is plain text.

    Args:
        points: the unpruned model among them, which savings and speed-ups are relative to; at least one.
        title: what was swept, such as the model and the data set; stands above the finding.
        facts: how it was measured, name -> value.
        command: what to type to get this page.

    Raises:
        ValueError: no points.
    """
    numbers, marks, dense = numbered(points), places(points), unpruned(points)
    return html(
        "sweep.html",
        title=headline(points),
        kicker=title,
        findings=findings(points),
        charts=_charts(points, numbers),
        caption=CAPTION,
        about=ABOUT_FRONTIER,
        best=[(number, points[i], marks[i].replace("both", "GMACs and images/s")) for i, number in numbers.items()],
        columns=columns(points),
        lines=[(points[i].name, points[i].detail, cells(points[i], dense, marks[i])) for i in in_order(points)],
        notes=[about_metric(metric(points)) + NOTES],
        facts=facts,
        command=command,
    )


def about_metric(name: str) -> str:
    """The sentence below the table on what its accuracies are."""
    return f"{name} is top-1 accuracy with its 95 % interval. " if name == "acc1" else f"{name} has its 95 % interval. "


ABOUT_FRONTIER = (
    "Nothing else measured here is more accurate at the same or a lower cost, nor as accurate at a lower one: by "
    "GMACs, by images/s or by both. Costs within 1 % count as the same. Accuracies count as measured: a lead within "
    "the intervals may be chance. The numbers are those in the charts, each on the frontier of its chart."
)
CAPTION = (
    "Thin bars are 95 % intervals; the axes do not start at zero. Markers of nearly the same cost stand a few pixels "
    "aside. Lines connect the points of one strategy; the step line is the frontier."
)
NOTES = (
    "Points to unpruned are percentage points on the same images, with their 95 % interval (Tango's score interval; a "
    "bootstrap's for means over draws and scores between right and wrong, where enough images differ); p is of "
    "McNemar's test of that difference, each for itself, not corrected for the number of configurations. The speed-up "
    "is in images/s, against the unpruned model of the same run. The best of many looks better than it is: confirm a "
    "choice on images that did not choose it."
)


def nearly_free(points: Sequence[Measured]) -> list[Measured]:
    """The prunings that lose at most `MARGIN` against the unpruned model, as measured and to nine decimals."""
    return [p for p in _pruned(points) if p.difference is not None and _within(p.difference)]


def surely(points: Sequence[Measured]) -> list[Measured]:
    """Those of which the whole 95 % interval is within `MARGIN`, or better."""
    return [p for p in points if p.difference_low is not None and _within(p.difference_low)]


def _within(difference: float) -> bool:
    return round(difference + MARGIN, 9) >= 0


def headline(points: Sequence[Measured]) -> str:
    """The largest saving that is certain to be nearly free, in one line; where none is, one that may be."""
    dense = unpruned(points)
    if dense is None:
        return f"Configurations measured: {len(points)}, none of them unpruned"
    free = nearly_free(points)
    for best, says in ((_cheapest(surely(free)), "saves"), (_cheapest(free), "may save")):
        if best is not None and _saved(best, dense) >= 0.005:
            saving = f"{best.name} {says} {100 * _saved(best, dense):.0f} % of the compute within 1 point of unpruned"
            return saving if says == "saves" else f"{saving}: not certain on these images"
    return "No pruning measured here saves compute within 1 point of the unpruned model"


def findings(points: Sequence[Measured]) -> list[str]:
    """What the numbers say, a paragraph each: nearly free savings in GMACs and in time, and half the compute."""
    dense = unpruned(points)
    if dense is None:
        return []
    return [text for text in (_of_compute(points, dense), _of_time(points, dense), _of_half(points, dense)) if text]


def _pruned(points: Sequence[Measured]) -> list[Measured]:
    dense = unpruned(points)
    return [point for point in points if dense is None or point.name != dense.name]


def _cheapest(points: Sequence[Measured]) -> Measured | None:
    return min(points, key=lambda p: (p.gmacs, -p.accuracy), default=None)


def _saved(point: Measured, dense: Measured) -> float:
    return 1 - point.gmacs / dense.gmacs


def _of_compute(points: Sequence[Measured], dense: Measured) -> str:
    """The saving of the headline, and the larger one that is not certain."""
    free = [p for p in nearly_free(points) if _saved(p, dense) >= 0.005]
    sure, best = _cheapest(surely(free)), _cheapest(free)
    if best is None:
        return ""
    told = sure or best
    faster = speed_up(told, dense)
    speed = "" if faster is None else f" and runs at {times(faster)} the speed"
    text = (
        f"{told.title} takes {told.gmacs:.2f} GMACs an image instead of {dense.gmacs:.2f}{speed}: "
        f"{_accuracy(told)} against {_accuracy(dense)} unpruned{_interval(told)}."
    )
    if best == told:
        return text
    return f"{text} As measured {best.title} stays within 1 point too, with {best.gmacs:.2f} GMACs{_interval(best)}."


def _interval(point: Measured) -> str:
    """The difference with its interval, and a warning where the interval does not vouch for the margin."""
    if point.difference is None or point.difference_low is None or point.difference_high is None:
        return ""
    text = (
        f" ({signed(point.difference, 1)} points, 95 % interval {signed(point.difference_low, 1)} to "
        f"{signed(point.difference_high, 1)}"
    )
    return text + (")" if _within(point.difference_low) else "; that it loses at most 1 point is not certain)")


def _of_time(points: Sequence[Measured], dense: Measured) -> str:
    free = nearly_free(points)
    ratios = [(ratio, p) for p in free if (ratio := speed_up(p, dense)) is not None]
    if not ratios:
        return ""
    ratio, best = max(ratios, key=lambda pair: (pair[0], pair[1].accuracy))
    if ratio <= 1:
        return "Nothing that stays within 1 point of unpruned is faster than it here."
    if best == (_cheapest(surely(free)) or _cheapest(free)):
        return "Nothing else that stays within 1 point is faster."
    return (
        f"By the clock {best.title} gains most within 1 point: {times(ratio)} the images/s, {_accuracy(best)}"
        f"{_interval(best)}."
    )


def _of_half(points: Sequence[Measured], dense: Measured) -> str:
    """The most accurate of those whose share of the compute rounds to 50 % or less."""
    half = [p for p in _pruned(points) if round(100 * p.gmacs / dense.gmacs) <= 50]
    if not half:
        return "Nothing measured here gets by with half of the compute."
    best = max(half, key=lambda p: (p.accuracy, -p.gmacs))
    others = [p for p in half if p.name != best.name]
    text = (
        f"With at most half of the compute, {best.title} is the most accurate: {_accuracy(best)}{_interval_only(best)} "
        f"at {100 * best.gmacs / dense.gmacs:.0f} % of the GMACs"
    )
    if not others:
        return text + "."
    second = max(others, key=lambda p: (p.accuracy, -p.gmacs))
    return f"{text}; of the other strategies {second.title} comes next with {_accuracy(second)}."


def _interval_only(point: Measured) -> str:
    return "" if point.difference is None else f" ({signed(point.difference, 1)} points to unpruned)"


def _accuracy(point: Measured) -> str:
    draws = f" (mean of {point.draws} draws)" if point.draws > 1 else ""
    return f"{100 * point.accuracy:.1f} %{draws}"


def _charts(points: Sequence[Measured], numbers: Mapping[int, int]) -> list[tuple[str, str, str]]:
    """For each cost that is known: a heading, and the chart for a wide and for a narrow screen."""
    headings: dict[Cost, str] = {"gmacs": "Against compute"}
    if any(point.images_per_second is not None for point in points):
        headings["images_per_second"] = "Against measured speed"
    return [
        (
            heading,
            sweep_chart.svg(points, cost, numbers, f"{cost}-wide"),
            sweep_chart.svg(points, cost, numbers, f"{cost}-narrow", 343, 420),
        )
        for cost, heading in headings.items()
    ]
