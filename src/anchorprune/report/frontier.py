"""Many ways of pruning one model on one data set: which of them no other beats, as a table and as CSV rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anchorprune.report.table import MISSING, aligned, times

UNPRUNED = "unpruned"  # the `name` of a measurement without pruning

Cost = Literal["gmacs", "images_per_second"]

# Costs this near are taken as equal: budgets are whole tokens, and no timing is finer. Otherwise a configuration that
# saves a thousandth of the compute for ten points of accuracy would count as one that nothing beats.
SAME = 0.01


@dataclass(frozen=True)
class Measured:
    """One configuration and what it was measured at; accuracies and differences are shares, 0 … 1.

    Attributes:
        name: the strategy, `UNPRUNED` for none.
        flags: the rest of what identifies it, such as "--r 13"; may be empty.
        gmacs: multiply-adds of one image in the image tower, in billions, selection included.
        images_per_second: of the image tower; None where nothing was timed.
        accuracy, low, high: the metric with its 95 % interval; of several draws the mean.
        difference, difference_low, difference_high: accuracy minus the unpruned one on the same images, with its
            95 % interval; None for the unpruned model and where there is none.
        p_value: of McNemar's test against the unpruned model; None where there is none.
        draws: how many random draws the accuracy is the mean of; 1 for one evaluation.
        command: what to type to get this result.
        metric: what `accuracy` is, as results name it; the same for all that stand in one table.
    """

    name: str
    flags: str
    gmacs: float
    images_per_second: float | None
    accuracy: float
    low: float
    high: float
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    p_value: float | None = None
    draws: int = 1
    command: str = ""
    metric: str = "acc1"

    @property
    def title(self) -> str:
        """Name and flags, as one would type them."""
        return f"{self.name} {self.flags}".rstrip()

    @property
    def detail(self) -> str:
        """What the table says below the name: flags and draws."""
        draws = f"mean of {self.draws} draws" if self.draws > 1 else ""
        return ", ".join(part for part in (self.flags, draws) if part)


def frontier(points: Sequence[Measured], cost: Cost, same: float = SAME) -> list[int]:
    """The indices of the points that no other dominates, from the cheapest to the dearest.

    A point is dominated when another is more accurate and no dearer, or as accurate and cheaper. Costs that differ by
    no more than the share `same` are a tie: neither is cheaper. So along the list accuracy never falls, and points that
    are equal in both stay, in the order given. Accuracies count as measured, without regard to their intervals.

    Args:
        cost: "gmacs", where less is cheaper, or "images_per_second", where more is cheaper; points of which it is
            not known are left out.
        same: 0 or more; 0 gives the textbook's Pareto frontier.
    """
    # Of speeds, the time an image takes, so that `same` is a ratio of both.
    known = {i: getattr(point, cost) for i, point in enumerate(points)}
    costs = {i: value if cost == "gmacs" else 1 / value for i, value in known.items() if value}

    def dominates(a: int, b: int) -> bool:
        if points[a].accuracy > points[b].accuracy:
            return costs[a] <= costs[b] * (1 + same)
        return points[a].accuracy == points[b].accuracy and costs[a] * (1 + same) < costs[b]

    return sorted(
        (i for i in costs if not any(dominates(other, i) for other in costs)),
        key=lambda i: (costs[i], points[i].accuracy, i),
    )


def unpruned(points: Sequence[Measured]) -> Measured | None:
    """The unpruned model of the same run, the first where there are several; None where it was not measured."""
    return next((point for point in points if point.name == UNPRUNED), None)


def speed_up(point: Measured, dense: Measured | None) -> float | None:
    """Images/s as a multiple of those of `dense`; None where one of them is not known."""
    if dense is None or not dense.images_per_second or point.images_per_second is None:
        return None
    return point.images_per_second / dense.images_per_second


def strategies(points: Sequence[Measured]) -> list[str]:
    """The names of the strategies, in the order given, without `UNPRUNED`: what colours and markers go by."""
    return [name for name in dict.fromkeys(point.name for point in points) if name != UNPRUNED]


def in_order(points: Sequence[Measured]) -> list[int]:
    """The indices by GMACs, the dearest first; of equals the more accurate first."""
    return sorted(range(len(points)), key=lambda i: (-points[i].gmacs, -points[i].accuracy, i))


def numbered(points: Sequence[Measured]) -> dict[int, int]:
    """The indices of the points on either frontier with their numbers, 1, 2, …, in the order of the table."""
    best = {*frontier(points, "gmacs"), *frontier(points, "images_per_second")}
    return {i: number for number, i in enumerate((i for i in in_order(points) if i in best), 1)}


def places(points: Sequence[Measured]) -> list[str]:
    """For each point, which frontier it is on, in words: "GMACs", "images/s", "both" or nothing."""
    words = {(True, True): "both", (True, False): "GMACs", (False, True): "images/s", (False, False): ""}
    by_gmacs, by_speed = set(frontier(points, "gmacs")), set(frontier(points, "images_per_second"))
    return [words[i in by_gmacs, i in by_speed] for i in range(len(points))]


def metric(points: Sequence[Measured]) -> str:
    """What the accuracies are, as results name it."""
    return points[0].metric if points else "acc1"


def columns(points: Sequence[Measured]) -> list[str]:
    """The heads of the table."""
    value = f"{metric(points)} %"
    return ["strategy", value, "95 % interval", "points to unpruned", "p", "GMACs", "images/s", "speed-up", "frontier"]


def cells(point: Measured, dense: Measured | None, place: str) -> list[str]:
    """The point under `columns` without the first, as plain text; `place` is one of `places`."""
    faster = speed_up(point, dense)
    return [
        f"{100 * point.accuracy:.2f}",
        f"{100 * point.low:.2f} to {100 * point.high:.2f}",
        _difference(point),
        p_text(point.p_value),
        f"{point.gmacs:.2f}",
        _rate(point.images_per_second),
        MISSING if faster is None else times(faster),
        place,
    ]


def _difference(point: Measured) -> str:
    if point.difference is None:
        return MISSING
    text = signed(point.difference, 2)
    if point.difference_low is None or point.difference_high is None:
        return text
    return f"{text} ({signed(point.difference_low, 2)} to {signed(point.difference_high, 2)})"


def signed(share: float, digits: int) -> str:
    """A difference of shares in points, with its sign; what rounds to nothing is +0."""
    return f"{round(100 * share, digits) + 0.0:+.{digits}f}"


def _rate(rate: float | None) -> str:
    """Images/s to three digits or to whole ones: a slow machine does two a second."""
    return MISSING if rate is None else f"{rate:.0f}" if rate >= 99.95 else f"{rate:.3g}"


def p_text(p_value: float | None) -> str:
    """A p-value to three decimals."""
    return MISSING if p_value is None else "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def as_text(points: Sequence[Measured], width: int | None = None) -> str:
    """The table for a terminal, by GMACs, and below it the configurations on a frontier with their commands.

    Args:
        width: of the terminal, in columns; None: however wide.

    The speed-up is against the unpruned model among `points`.
    """
    dense, marks, numbers = unpruned(points), places(points), numbered(points)
    order = in_order(points)
    names = [" ".join(part for part in (points[i].name, points[i].detail) if part) for i in order]
    lines = [[name, *cells(points[i], dense, marks[i])] for name, i in zip(names, order, strict=True)]
    text = aligned([columns(points), *lines], width)
    if not numbers:
        return text
    listed = [
        f"{number:>2}. {points[i].title} ({marks[i]})" + (f"\n    {points[i].command}" if points[i].command else "")
        for i, number in numbers.items()
    ]
    return "\n".join([text, "", ABOUT_FRONTIERS, *listed])


ABOUT_FRONTIERS = (
    "On a frontier (nothing measured here is more accurate at the same or a lower\n"
    "cost, nor as accurate at a lower one; costs within 1 % count as the same; by\n"
    "GMACs, by images/s, or both):"
)


def rows(points: Sequence[Measured]) -> list[dict[str, Any]]:
    """One dict a point for `csv.DictWriter`, in the order of the table, all with the same keys.

    Shares are 0 … 1 and unrounded, None is what is not known, `frontier` is one of `places`, `speed_up` is against
    the unpruned model among `points`.
    """
    dense, marks, value = unpruned(points), places(points), metric(points)
    return [
        {
            "strategy": points[i].name,
            "flags": points[i].flags,
            "draws": points[i].draws,
            value: points[i].accuracy,
            f"{value}_low": points[i].low,
            f"{value}_high": points[i].high,
            "difference": points[i].difference,
            "difference_low": points[i].difference_low,
            "difference_high": points[i].difference_high,
            "p_value": points[i].p_value,
            "gmacs": points[i].gmacs,
            "images_per_second": points[i].images_per_second,
            "speed_up": speed_up(points[i], dense),
            "frontier": marks[i],
            "command": points[i].command,
        }
        for i in in_order(points)
    ]
