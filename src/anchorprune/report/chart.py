"""Accuracy against compute, as one SVG without scripts; the colours are the page's CSS variables.

`layout` decides where everything goes and `svg` only writes it down, so that the geometry can be tested.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

FONT = 12  # pixels; a character is taken to be 0.6 of it wide
_HEIGHT = FONT + 3
MARK = 5.5  # half a marker's size


@dataclass(frozen=True)
class Point:
    """One result: `series` gives it its marker, `label` stands beside it; accuracies 0 … 1."""

    series: str
    label: str
    gmacs: float
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)

    def inside(self, other: Box) -> bool:
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True)
class Placed:
    """A point in pixels, its interval from `high_y` down to `low_y`, and the box of its label."""

    point: Point
    x: float
    y: float
    low_y: float
    high_y: float
    label: Box


@dataclass(frozen=True)
class Layout:
    """Where everything goes in a drawing of `width × height` pixels."""

    width: int
    height: int
    plot: Box
    x_ticks: list[tuple[float, float]]  # value in GMACs, pixel
    y_ticks: list[tuple[float, float]]  # value in percent, pixel
    placed: list[Placed]


def layout(points: Sequence[Point], width: int, height: int) -> Layout:
    """Axes from the data (compute from zero), points apart from each other, labels where nothing is.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("a chart needs points")
    plot = Box(46, 12, width - 12, height - 44)
    x_values = ticks(0, 1.06 * max(point.gmacs for point in points), max(5, round((plot.right - plot.left) / 90)))
    low, high = 100 * min(point.low for point in points), 100 * max(point.high for point in points)
    y_values = ticks(max(0, low - 3), min(100, high + 3), max(3, round((plot.bottom - plot.top) / 55)))

    def x_of(gmacs: float) -> float:
        return plot.left + (gmacs - x_values[0]) / (x_values[-1] - x_values[0]) * (plot.right - plot.left)

    def y_of(value: float) -> float:
        return plot.bottom - (value - y_values[0]) / (y_values[-1] - y_values[0]) * (plot.bottom - plot.top)

    xs = apart([x_of(point.gmacs) for point in points], 2 * MARK + 3, plot, [point.gmacs for point in points])
    spots = [
        (point, x, y_of(100 * point.accuracy), y_of(100 * point.low), y_of(100 * point.high))
        for point, x in zip(points, xs, strict=True)
    ]
    taken = [Box(x - MARK - 1, y - MARK - 1, x + MARK + 1, y + MARK + 1) for _, x, y, _, _ in spots]
    taken += [Box(x - 4, high_y, x + 4, low_y) for _, x, _, low_y, high_y in spots]
    placed = []
    for point, x, y, low_y, high_y in spots:
        label = free_box(0.6 * FONT * len(point.label), x, y, plot, taken)
        taken.append(label)
        placed.append(Placed(point, x, y, low_y, high_y, label))
    return Layout(
        width, height, plot, [(v, x_of(v)) for v in x_values], [(v, y_of(v)) for v in y_values], placed
    )  # fmt: skip


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` numbers from at or below `low` to at or above `high`; 1, 2, 2.5 or 5 times a power of ten apart."""
    span = max(high - low, 1e-9)
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, max(last, first + 1) + 1)]


def apart(xs: Sequence[float], gap: float, plot: Box, values: Sequence[float]) -> list[float]:
    """The positions moved so far that neighbours are `gap` pixels apart (less where they would not fit), in place.

    Args:
        values: what the positions stand for; they decide the order of those that rounded to the same pixel.
    """
    order = sorted(range(len(xs)), key=lambda i: (xs[i], values[i], i))
    room = plot.right - plot.left - 2 * MARK
    gap = min(gap, room / max(1, len(xs) - 1))
    groups: list[list[int]] = []  # those that touch, each laid out around the middle of where they belong
    starts: list[float] = []
    for i in order:
        groups.append([i])
        starts.append(0.0)
        while True:
            group = groups[-1]
            centre = sum(xs[j] for j in group) / len(group)
            half = gap * (len(group) - 1) / 2
            starts[-1] = min(max(centre - half, plot.left + MARK), plot.right - MARK - 2 * half)
            if len(groups) < 2 or starts[-2] + gap * len(groups[-2]) <= starts[-1] + 1e-9:
                break
            starts.pop()
            last = groups.pop()
            groups[-1] += last
    moved = list(xs)
    for group, start in zip(groups, starts, strict=True):
        for place, i in enumerate(group):
            moved[i] = start + place * gap
    return moved


def free_box(width: float, x: float, y: float, plot: Box, taken: Sequence[Box]) -> Box:
    """The box of a label near (x, y): the nearest that covers nothing, else the one that covers least."""
    shifts = [dy for step in range(13) for dy in ((0.0,) if step == 0 else (-8.0 * step, 8.0 * step))]
    away = MARK + 5
    boxes = []
    for dy, side in product(shifts, ("right", "left", "middle")):
        left = {"right": x + away, "left": x - away - width, "middle": x - width / 2}[side]
        box = Box(left, y + dy - _HEIGHT / 2, left + width, y + dy + _HEIGHT / 2)
        if box.inside(plot):
            boxes.append(box)
    if not boxes:  # a label wider than the plot
        return Box(plot.left, y - _HEIGHT / 2, plot.left + width, y + _HEIGHT / 2)
    return min(boxes, key=lambda box: sum(box.overlap(other) for other in taken))  # the first of equals


def svg(points: Sequence[Point], ident: str, width: int = 720, height: int = 420) -> str:
    """The chart; `ident` begins its element ids, which must differ within a page."""
    drawn = layout(points, width, height)
    series = list(dict.fromkeys(point.series for point in points))
    lines = [
        f'<svg class="chart" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-labelledby="{ident}-title {ident}-desc">',
        f'<title id="{ident}-title">Top-1 accuracy against compute</title>',
        f'<desc id="{ident}-desc">{html.escape(_in_words(points))}</desc>',
    ]
    lines += axes(drawn, "GMACs an image (less is faster)")
    for name in series:
        path = sorted((p.x, p.y) for p in drawn.placed if p.point.series == name)
        if len(path) > 1:
            steps = " ".join(f"{x:.1f},{y:.1f}" for x, y in path)
            lines.append(f'<polyline class="trend {_class(series, name)}" points="{steps}"/>')
    for spot in drawn.placed:
        lines += _spot(spot, _class(series, spot.point.series), series.index(spot.point.series))
    return "\n".join([*lines, "</svg>"])


def axes(drawn: Layout, x_name: str) -> list[str]:
    """Grid, ticks and names of the axes; accuracy in percent upwards."""
    plot, lines = drawn.plot, []
    for value, y in drawn.y_ticks:
        lines.append(f'<line class="grid" x1="{plot.left:.1f}" x2="{plot.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        lines.append(text_at(plot.left - 7, y + 4, f"{value:g}", "end"))
    for value, x in drawn.x_ticks:
        lines.append(
            f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{plot.bottom:.1f}" y2="{plot.bottom + 5:.1f}"/>'
        )
        lines.append(text_at(x, plot.bottom + 19, f"{value:g}", "middle"))
    lines.append(
        f'<line class="axis" x1="{plot.left:.1f}" x2="{plot.right:.1f}" y1="{plot.bottom:.1f}" y2="{plot.bottom:.1f}"/>'
    )
    lines.append(text_at((plot.left + plot.right) / 2, drawn.height - 6, x_name, "middle"))
    middle = (plot.top + plot.bottom) / 2
    lines.append(
        f'<text x="12" y="{middle:.1f}" text-anchor="middle" transform="rotate(-90 12 {middle:.1f})">top-1, %</text>'
    )
    return lines


def marker(index: int, x: float, y: float) -> str:
    """The marker of the series at `index`: the shape tells them apart without colour."""
    s, r = MARK, 0.9 * MARK
    shapes = (
        f'<path class="mark" d="M{x:.1f} {y - 1.3 * s:.1f}l{1.3 * s:.1f} {1.3 * s:.1f}l{-1.3 * s:.1f} {1.3 * s:.1f}'
        f'l{-1.3 * s:.1f} {-1.3 * s:.1f}z"/>',
        f'<circle class="mark" cx="{x:.1f}" cy="{y:.1f}" r="{s}"/>',
        f'<rect class="mark" x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:.1f}" height="{2 * r:.1f}"/>',
        f'<path class="mark" d="M{x:.1f} {y - 1.2 * s:.1f}l{1.25 * s:.1f} {2.2 * s:.1f}h{-2.5 * s:.1f}z"/>',
        f'<path class="mark" d="M{x:.1f} {y + 1.2 * s:.1f}l{1.25 * s:.1f} {-2.2 * s:.1f}h{-2.5 * s:.1f}z"/>',
        f'<path class="mark" d="M{x - 1.2 * s:.1f} {y:.1f}l{2.2 * s:.1f} {-1.25 * s:.1f}v{2.5 * s:.1f}z"/>',
    )
    return shapes[index % len(shapes)]  # as many as `_class` has colours


def legend(points: Sequence[Point]) -> str:
    """Names of the series beside their markers, as an HTML list."""
    series = list(dict.fromkeys(point.series for point in points))
    items = "".join(
        f'<li><svg class="key {_class(series, name)}" viewBox="0 0 18 18" width="18" height="18" aria-hidden="true">'
        f"{marker(i, 9, 9)}</svg>{html.escape(name)}</li>"
        for i, name in enumerate(series)
    )
    return f'<ul class="legend">{items}</ul>'


def _spot(spot: Placed, kind: str, index: int) -> list[str]:
    x, box = spot.x, spot.label
    ends = "".join(f"M{x - 4:.1f} {y:.1f}h8" for y in (spot.low_y, spot.high_y))
    lines = [
        f'<g class="{kind}">',
        f'<path class="interval" d="M{x:.1f} {spot.low_y:.1f}V{spot.high_y:.1f}{ends}"/>',
        marker(index, x, spot.y),
    ]
    middle = (box.top + box.bottom) / 2
    if abs(middle - spot.y) > _HEIGHT:
        near = box.left - 2 if box.left > x else box.right + 2 if box.right < x else x
        toward = box.top if middle > spot.y else box.bottom
        end = (near, middle) if near != x else (x, toward)
        lines.append(f'<path class="leader" d="M{x:.1f} {spot.y:.1f}L{end[0]:.1f} {end[1]:.1f}"/>')
    lines.append(text_at(box.left, middle + 4, spot.point.label, "start"))
    return [*lines, "</g>"]


def _class(series: Sequence[str], name: str) -> str:
    return f"s{series.index(name) % 6}"


def text_at(x: float, y: float, text: str, anchor: str) -> str:
    """Plain text as an SVG element, at pixels, by its `anchor`: "start", "middle" or "end"."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _in_words(points: Sequence[Point]) -> str:
    return "; ".join(
        f"{p.label}: {p.gmacs:.2f} GMACs, {100 * p.accuracy:.1f} % ({100 * p.low:.1f} to {100 * p.high:.1f})"
        for p in points
    )
