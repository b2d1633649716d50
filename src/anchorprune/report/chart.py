"""Accuracy against compute of a few results, each named beside its marker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from anchorprune.report import figures


@dataclass(frozen=True)
class Point:
    """One result: `series` gives it its marker, `label` stands beside it; accuracies 0 … 1."""

    series: str
    label: str
    gmacs: float
    accuracy: float
    low: float
    high: float


@figures.look()
def svg(points: Sequence[Point], ident: str, width: int = 720, height: int = 410) -> str:
    """The chart for a page; `ident` begins its element ids, which must differ within the page."""
    drawn = figure(points, width, height)
    return figures.as_svg(drawn, ident, "Top-1 accuracy against compute", _in_words(points))


def figure(points: Sequence[Point], width: int, height: int) -> Figure:
    """Compute starts at zero, accuracy does not; markers that would cover each other stand a few pixels aside.

    Args:
        points: the first one's series is drawn as the unpruned model.
        width, height: in pixels; the legend comes below.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("a chart needs points")
    series = list(dict.fromkeys(point.series for point in points))
    places = {name: place - 1 if place else None for place, name in enumerate(series)}
    drawn, (axes,) = figures.new(width, height)
    axes.set_xlabel("GMACs an image (less is faster)")
    axes.set_ylabel("top-1, %")
    low, high = min(point.low for point in points), max(point.high for point in points)
    most = max(point.gmacs for point in points)
    figures.scale(axes, (0, 1.06 * most), (max(-1.0, 100 * low - 3), min(101.0, 100 * high + 3)))
    figures.settle(drawn, [figures.key(name, drawn, **figures.mark(places[name])) for name in series])

    xs = figures.apart(axes, [point.gmacs for point in points], 2 * figures.MARK + 3)
    labels, occupied = [], []
    for x, point in zip(xs, points, strict=True):
        colour, y = figures.series_colour(places[point.series]), 100 * point.accuracy
        figures.interval(axes, x, y, 100 * point.low, 100 * point.high, colour, caps=4)
        axes.plot(x, y, zorder=3, **figures.mark(places[point.series]))
        labels.append((x, y, point.label, {"color": colour, "zorder": 4}))
        occupied += figures.taken(axes, x, y, 100 * point.low, 100 * point.high, caps=4)
    for name in series:
        path = sorted((x, 100 * point.accuracy) for x, point in zip(xs, points, strict=True) if point.series == name)
        axes.plot(*zip(*path, strict=True), color=figures.series_colour(places[name]), alpha=0.55, dashes=(4, 4))
    figures.label(axes, labels, occupied)
    return drawn


def _in_words(points: Sequence[Point]) -> str:
    return "; ".join(
        f"{p.label}: {p.gmacs:.2f} GMACs, {100 * p.accuracy:.1f} % ({100 * p.low:.1f} to {100 * p.high:.1f})"
        for p in points
    )
