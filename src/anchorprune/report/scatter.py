"""Accuracy against cost of many configurations, as one SVG: a marker for each strategy, numbers on the frontier.

Thirty labels would cover each other: strategies are named in a legend, and only the points that nothing beats carry
a number, that of the page's list of commands.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anchorprune.report import chart
from anchorprune.report.chart import MARK, Box, Layout
from anchorprune.report.frontier import UNPRUNED, Cost, Measured, frontier, strategies

AXES: Mapping[Cost, str] = {
    "gmacs": "GMACs an image (less is cheaper)",
    "images_per_second": "images/s of the image tower (more is faster)",
}
GAP = 4  # pixels between intervals of the same cost, so that they can be told apart
COLOURS = 8  # `k0` … of the style sheet


@dataclass(frozen=True)
class Spot:
    """The point at `index` in pixels, its interval from `high_y` down to `low_y`, and where its number stands."""

    index: int
    x: float
    y: float
    low_y: float
    high_y: float
    number: Box | None


def layout(
    points: Sequence[Measured], cost: Cost, numbers: Mapping[int, int], width: int, height: int
) -> tuple[Layout, list[Spot]]:
    """The axes and where the points of known cost are; neither axis starts at zero.

    Points that share a cost, as those solved for one budget do, stand a few pixels aside in their order, so that
    their intervals can be told apart; numbers stand where nothing else is.

    Args:
        numbers: what is written beside the points at these indices, where they are drawn.

    Raises:
        ValueError: the cost of no point is known.
    """
    costs = {i: value for i, point in enumerate(points) if (value := getattr(point, cost)) is not None}
    if not costs:
        raise ValueError("a chart needs points")
    shown = [points[i] for i in costs]
    plot = Box(46, 12, width - 20, height - 44)
    x_low, x_high = _range(min(costs.values()), max(costs.values()), 0.04)
    y_low, y_high = _range(100 * min(p.low for p in shown), 100 * max(p.high for p in shown), 0.02)
    x_ticks = _ticks(x_low, x_high, max(5, round((plot.right - plot.left) / 90)))
    y_ticks = _ticks(y_low, y_high, max(4, round((plot.bottom - plot.top) / 55)))

    def x_of(value: float) -> float:
        return plot.left + (value - x_low) / (x_high - x_low) * (plot.right - plot.left)

    def y_of(value: float) -> float:
        return plot.bottom - (value - y_low) / (y_high - y_low) * (plot.bottom - plot.top)

    xs = chart.apart([x_of(value) for value in costs.values()], GAP, plot, [*costs.values()])
    bare = [
        Spot(i, x, y_of(100 * p.accuracy), y_of(100 * p.low), y_of(100 * p.high), None)
        for i, x, p in zip(costs, xs, shown, strict=True)
    ]
    taken = [Box(s.x - MARK - 1, s.y - MARK - 1, s.x + MARK + 1, s.y + MARK + 1) for s in bare]
    taken += [Box(s.x - 1, s.high_y, s.x + 1, s.low_y) for s in bare]
    spots = []
    for spot in bare:
        number = None
        if spot.index in numbers:
            number = chart.free_box(8 + 0.65 * chart.FONT * len(str(numbers[spot.index])), spot.x, spot.y, plot, taken)
            taken.append(number)
        spots.append(Spot(spot.index, spot.x, spot.y, spot.low_y, spot.high_y, number))
    axes = Layout(width, height, plot, [(v, x_of(v)) for v in x_ticks], [(v, y_of(v)) for v in y_ticks], [])
    return axes, spots


def _range(low: float, high: float, margin: float) -> tuple[float, float]:
    """An axis for values from `low` to `high`; where all are the same, a tenth of them wide."""
    room = margin * (high - low) or 0.05 * abs(high) or 1.0
    return max(0.0, low - room), high + room


def _ticks(low: float, high: float, count: int) -> list[float]:
    return [value for value in chart.ticks(low, high, count) if low <= value <= high]


def steps(spots: Mapping[int, Spot], best: Sequence[int]) -> str:
    """An SVG path along the frontier `best`, from the cheapest: as accurate as the last until the next is reached."""
    first, *rest = (spots[i] for i in best)
    return f"M{first.x:.1f} {first.y:.1f}" + "".join(f"H{spot.x:.1f}V{spot.y:.1f}" for spot in rest)


def svg(
    points: Sequence[Measured], cost: Cost, numbers: Mapping[int, int], ident: str, kind: str, width: int, height: int
) -> str:
    """The chart; `ident` begins its element ids, which must differ within a page, `kind` is "wide" or "narrow"."""
    best = frontier(points, cost)
    numbers = {i: number for i, number in numbers.items() if i in best}
    axes, spots = layout(points, cost, numbers, width, height)
    by_index = {spot.index: spot for spot in spots}
    names = strategies(points)
    lines = [
        f'<svg class="chart many {kind}" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-labelledby="{ident}-title {ident}-desc">',
        f'<title id="{ident}-title">Top-1 accuracy against {AXES[cost]}</title>',
        f'<desc id="{ident}-desc">{html.escape(_in_words(points, cost, best, len(spots)))}</desc>',
        *chart.axes(axes, AXES[cost]),
    ]
    if dense := next((spot for spot in spots if points[spot.index].name == UNPRUNED), None):
        lines.append(f'<path class="reference" d="M{axes.plot.left:.1f} {dense.y:.1f}H{axes.plot.right:.1f}"/>')
    for name in names:
        path = sorted((s.x, s.y) for s in spots if points[s.index].name == name)
        if len(path) > 1:
            trace = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
            lines.append(f'<polyline class="trend {_class(names, name)}" points="{trace}"/>')
    lines.append(f'<path class="frontier" d="{steps(by_index, best)}"/>')
    # What is on the frontier comes last and so on top.
    for spot in sorted(spots, key=lambda s: s.index in best):
        name, low, high = points[spot.index].name, spot.low_y, spot.high_y
        lines.append(
            f'<g class="{_class(names, name)} {"best" if spot.index in best or name == UNPRUNED else "dominated"}">'
            f'<path class="interval" d="M{spot.x:.1f} {low:.1f}V{high:.1f}"/>{marker(names, name, spot.x, spot.y)}</g>'
        )
    for spot in spots:
        if spot.number is not None:
            lines += _number(spot, spot.number, numbers[spot.index])
    return "\n".join([*lines, "</svg>"])


def _number(spot: Spot, box: Box, number: int) -> list[str]:
    middle = (box.top + box.bottom) / 2
    lines = []
    if math.hypot((box.left + box.right) / 2 - spot.x, middle - spot.y) > 3.5 * MARK:
        near = box.left if box.left > spot.x else box.right if box.right < spot.x else spot.x
        toward = middle if near != spot.x else box.top if middle > spot.y else box.bottom
        lines.append(f'<path class="leader s0" d="M{spot.x:.1f} {spot.y:.1f}L{near:.1f} {toward:.1f}"/>')
    x = (box.left + box.right) / 2
    lines.append(f'<g><text class="number" x="{x:.1f}" y="{middle + 4:.1f}" text-anchor="middle">{number}</text></g>')
    return lines


def marker(names: Sequence[str], name: str, x: float, y: float) -> str:
    """The marker of a strategy, a diamond for the unpruned model: the shape tells them apart without colour."""
    outline = _DIAMOND if name == UNPRUNED else _OUTLINES[names.index(name) % len(_OUTLINES)]
    path = "L".join(f"{x + MARK * dx:.1f} {y + MARK * dy:.1f}" for dx, dy in outline)
    return f'<path class="mark" d="M{path}z"/>'


def _ring(count: int, radius: float, inner: float | None = None, turn: float = 0.0) -> list[tuple[float, float]]:
    """Corners on a circle, the first at the top; with `inner` a star of as many points."""
    radii = (radius,) if inner is None else (radius, inner)
    total = count * len(radii)
    angles = [2 * math.pi * i / total - math.pi / 2 + turn for i in range(total)]
    return [(radii[i % len(radii)] * math.cos(a), radii[i % len(radii)] * math.sin(a)) for i, a in enumerate(angles)]


_PLUS = [(-0.4, -1.15), (0.4, -1.15), (0.4, -0.4), (1.15, -0.4), (1.15, 0.4), (0.4, 0.4),
         (0.4, 1.15), (-0.4, 1.15), (-0.4, 0.4), (-1.15, 0.4), (-1.15, -0.4), (-0.4, -0.4)]  # fmt: skip
_DIAMOND = _ring(4, 1.45)
_OUTLINES = [
    _ring(24, 1.0),  # a circle
    _ring(4, 1.25, turn=math.pi / 4),  # a square
    _ring(3, 1.35),  # a triangle
    _ring(3, 1.35, turn=math.pi),  # upside down
    _PLUS,
    [((dx - dy) * 0.72, (dx + dy) * 0.72) for dx, dy in _PLUS],  # a cross
    _ring(5, 1.5, 0.65),  # a star
    _ring(3, 1.35, turn=-math.pi / 2),  # to the left
    _ring(6, 1.15),  # nine shapes and eight colours: 72 strategies before two look the same
]


def legend(points: Sequence[Measured]) -> str:
    """What markers and lines mean, as an HTML list."""
    names = strategies(points)
    shown = [name for name in dict.fromkeys(p.name for p in points) if name == UNPRUNED] + names
    keys = [(f"{_class(names, name)} best", marker(names, name, 9, 9), html.escape(name)) for name in shown]
    keys.append(("s0 dominated", f'<circle class="mark" cx="9" cy="9" r="{MARK}"/>', "hollow: another beats it"))
    if UNPRUNED in shown:
        keys.append(("", '<path class="reference" d="M0 9H18"/>', "accuracy unpruned"))
    keys.append(("", '<path class="frontier" d="M1 14H9V5H17"/>', "frontier"))
    return (
        '<ul class="legend">'
        + "".join(
            f'<li><svg class="key {kind}" viewBox="0 0 18 18" width="18" height="18" aria-hidden="true">{drawn}</svg>'
            f"{text}</li>"
            for kind, drawn, text in keys
        )
        + "</ul>"
    )


def _class(names: Sequence[str], name: str) -> str:
    return "s0" if name == UNPRUNED else f"k{names.index(name) % COLOURS}"


def _in_words(points: Sequence[Measured], cost: Cost, best: Sequence[int], count: int) -> str:
    unit = "GMACs" if cost == "gmacs" else "images/s"
    listed = (f"{points[i].title}: {getattr(points[i], cost):.4g} {unit}, {points[i].accuracy:.1%}" for i in best)
    return f"{count} configurations; on the frontier, from the cheapest: " + "; ".join(listed)
