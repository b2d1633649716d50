"""Accuracy against cost of many configurations: a marker for each strategy, numbers on the frontier.

Thirty labels would cover each other: strategies are named in a legend, and only the points that nothing beats carry
a number, that of the page's list of commands.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from anchorprune.files import write_bytes
from anchorprune.report import figures
from anchorprune.report.figures import COLOURS, DASHES
from anchorprune.report.frontier import UNPRUNED, Cost, Measured, frontier, metric, strategies

AXES: Mapping[Cost, str] = {
    "gmacs": "GMACs an image (less is cheaper)",
    "images_per_second": "images/s of the image tower (more is faster)",
}
GAP = 4  # pixels between intervals of the same cost, so that they can be told apart
REFERENCE: dict[str, Any] = {"color": COLOURS["soft"], "linewidth": 1, "linestyle": DASHES}
STEPS: dict[str, Any] = {"color": COLOURS["ink"], "linewidth": 1.5, "alpha": 0.8}


@figures.look()
def svg(
    points: Sequence[Measured], cost: Cost, numbers: Mapping[int, int], ident: str, width: int = 880, height: int = 460
) -> str:
    """The chart against one cost for a page; `ident` begins its element ids, which must differ within the page."""
    name = "Top-1 accuracy" if metric(points) == "acc1" else metric(points)
    drawn = figure(points, [cost], numbers, width, height)
    return figures.as_svg(drawn, ident, f"{name} against {AXES[cost]}", _in_words(points, cost))


@figures.look()
def write_png(points: Sequence[Measured], path: str | os.PathLike[str], title: str) -> None:
    """Write accuracy against GMACs and against images/s, side by side, for slides: all of the file or nothing.

    Args:
        points: at least one.
        title: above both charts; plain text, also where it looks like TeX.

    Raises:
        ValueError: no points.
        OSError: the file cannot be written.
    """
    drawn = figure(points, list(AXES), {}, 1100, 500, title)
    write_bytes(figures.as_png(drawn), path)


def figure(
    points: Sequence[Measured],
    costs: Sequence[Cost],
    numbers: Mapping[int, int],
    width: int,
    height: int,
    title: str = "",
) -> Figure:
    """A chart for each cost, side by side; none of their axes starts at zero.

    Args:
        points: at least one; those of unknown cost are left out.
        numbers: what is written beside the points at these indices, where they are on the frontier of that cost.
        width, height: in pixels; the legend comes below.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("a chart needs points")
    drawn, panels = figures.new(width, height, len(costs), title)
    for axes, cost in zip(panels, costs, strict=True):
        _scale(axes, points, cost)
    figures.settle(drawn, _keys(drawn, points))
    for axes, cost in zip(panels, costs, strict=True):
        _draw(axes, points, cost, numbers)
    return drawn


def _known(points: Sequence[Measured], cost: Cost) -> dict[int, float]:
    return {i: value for i, point in enumerate(points) if (value := getattr(point, cost)) is not None}


def _scale(axes: Axes, points: Sequence[Measured], cost: Cost) -> None:
    """Names and ranges of the axes, a little wider than the data."""
    axes.set_xlabel(AXES[cost])
    axes.set_ylabel("top-1, %" if metric(points) == "acc1" else f"{figures.plain(metric(points))}, %")
    costs = _known(points, cost)
    if costs:
        shown = [points[i] for i in costs]
        low, high = 100 * min(p.low for p in shown), 100 * max(p.high for p in shown)
        figures.scale(axes, _range([*costs.values()], 0.04), _range([low, high], 0.02))


def _range(values: Sequence[float], margin: float) -> tuple[float, float]:
    """From below the least to above the largest value; where all are the same, a tenth of it wide."""
    low, high = min(values), max(values)
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _draw(axes: Axes, points: Sequence[Measured], cost: Cost, numbers: Mapping[int, int]) -> None:
    costs = _known(points, cost)
    if not costs:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "not timed", transform=axes.transAxes, ha="center")
        return
    xs = dict(zip(costs, figures.apart(axes, [*costs.values()], GAP), strict=True))
    tops = {i: 100 * points[i].accuracy for i in costs}
    best, names = frontier(points, cost), strategies(points)
    for name in dict.fromkeys(points[i].name for i in costs):
        mine = sorted((i for i in costs if points[i].name == name), key=lambda i: xs[i])
        place = None if name == UNPRUNED else names.index(name)
        colour = figures.series_colour(place)
        if place is None:
            axes.axhline(tops[mine[0]], zorder=1.5, **REFERENCE)
        else:
            axes.plot([xs[i] for i in mine], [tops[i] for i in mine], color=colour, linewidth=1.25, alpha=0.35)
        for i in mine:
            beaten = i not in best and place is not None
            figures.interval(axes, xs[i], tops[i], 100 * points[i].low, 100 * points[i].high, colour, alpha=0.4)
            axes.plot(xs[i], tops[i], zorder=3 if beaten else 5, **figures.mark(place, hollow=beaten))
    axes.step([xs[i] for i in best], [tops[i] for i in best], where="post", zorder=4, **STEPS)
    bold = {"color": COLOURS["ink"], "weight": "bold", "zorder": 6}
    occupied = [
        box for i, x in xs.items() for box in figures.taken(axes, x, tops[i], 100 * points[i].low, 100 * points[i].high)
    ]
    figures.label(axes, [(xs[i], tops[i], str(numbers[i]), bold) for i in best if i in numbers], occupied)


def _keys(figure: Figure, points: Sequence[Measured]) -> list[Any]:
    """What markers and lines mean."""
    names = strategies(points)
    keys = [figures.key(name, figure, **figures.mark(place)) for place, name in enumerate(names)]
    dense = any(point.name == UNPRUNED for point in points)
    if dense:
        keys.insert(0, figures.key(UNPRUNED, figure, **figures.mark(None)))
    hollow = {**figures.mark(None, hollow=True), "marker": "o"}
    keys.append(figures.key("hollow: another beats it", figure, **hollow))
    if dense:
        keys.append(figures.key("accuracy unpruned", figure, **REFERENCE))
    return [*keys, figures.key("frontier", figure, **STEPS)]


def _in_words(points: Sequence[Measured], cost: Cost) -> str:
    unit = "GMACs" if cost == "gmacs" else "images/s"
    best = [points[i] for i in frontier(points, cost)]
    listed = (f"{point.title}: {getattr(point, cost):.4g} {unit}, {point.accuracy:.1%}" for point in best)
    count = len(_known(points, cost))
    return f"{count} configurations; on the frontier, from the cheapest: " + "; ".join(listed)
