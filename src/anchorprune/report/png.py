"""The sweep's two charts as one PNG, for slides and READMEs. Matplotlib is imported when it draws, not before."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from anchorprune.report import chart
from anchorprune.report.frontier import UNPRUNED, Cost, Measured, frontier, strategies
from anchorprune.results import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (12.0, 5.6)  # inches
DPI = 150
# Okabe and Ito's eight, which the colour-blind tell apart, without black: that is the unpruned model. The yellow, too
# pale for lines on white, comes last but one; the grey is ours.
COLOURS = ("#e69f00", "#0072b2", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#777777", "#d9c700")
MARKERS = (("o", 7), ("s", 6.5), ("^", 7.5), ("v", 7.5), ("P", 8.5), ("X", 8.5), ("*", 11), ("<", 7.5), ("h", 8))
GAP = 3  # pixels at 100 dpi between intervals of the same cost, so that they can be told apart
BLACK = "#000000"
AXES: dict[Cost, str] = {
    "gmacs": "GMACs an image (less is cheaper)",
    "images_per_second": "images/s of the image tower (more is faster)",
}


def write_png(points: Sequence[Measured], path: str | os.PathLike[str], title: str) -> None:
    """Write accuracy against GMACs and against images/s, side by side: 1800 × 840 pixels, all of it or nothing.

    Args:
        points: at least one.
        title: above both charts; plain text, also where it looks like TeX.

    Raises:
        ValueError: no points.
        OSError: the file cannot be written.
    """
    if not points:
        raise ValueError("a chart needs points")
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    content = io.BytesIO()
    with matplotlib.style.context("default"), warnings.catch_warnings():  # whatever the user's matplotlibrc says
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")  # a title in Chinese: boxes, no complaint
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(_plain(title), fontsize=13, parse_math=False)
        left, right = figure.subplots(1, 2)
        _panel(left, points, "gmacs")
        _panel(right, points, "images_per_second")
        handles = _handles(points)
        found = figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6), frameon=False)
        for text in found.get_texts():
            text.set_parse_math(False)
        figure.savefig(content, format="png")
    write_bytes(content.getvalue(), path)


def _panel(axes: Axes, points: Sequence[Measured], cost: Cost) -> None:
    axes.set_xlabel(AXES[cost])
    axes.set_ylabel("top-1, %")
    axes.grid(color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    values = {i: value for i, point in enumerate(points) if (value := getattr(point, cost)) is not None}
    if not values:
        axes.text(0.5, 0.5, "not timed", transform=axes.transAxes, ha="center", color="#555555")
        return
    xs = _aside(values)
    best = frontier(points, cost)
    names = strategies(points)
    for name in dict.fromkeys(point.name for point in points):
        mine = sorted((i for i in values if points[i].name == name), key=lambda i: xs[i])
        style = _style(names, name)
        where = [xs[i] for i in mine]
        tops = [100 * points[i].accuracy for i in mine]
        if len(mine) > 1:
            axes.plot(where, tops, color=style["color"], linewidth=1, alpha=0.4, zorder=2)
        # An accuracy that was rounded may lie a hair outside its own interval; a bar cannot have a negative length.
        bars = [
            [max(0.0, 100 * (points[i].accuracy - points[i].low)) for i in mine],
            [max(0.0, 100 * (points[i].high - points[i].accuracy)) for i in mine],
        ]
        axes.errorbar(where, tops, yerr=bars, fmt="none", ecolor=style["color"], elinewidth=1, alpha=0.5, zorder=2)
        for i, x, y in zip(mine, where, tops, strict=True):
            on = i in best or name == UNPRUNED
            face = style["color"] if on else "white"
            axes.plot(
                x, y, linestyle="none", markerfacecolor=face, **style,
                markeredgecolor="white" if on else style["color"], markeredgewidth=0.7 if on else 1.2,
                zorder=5 if on else 4,
            )  # fmt: skip
        if name == UNPRUNED:
            axes.axhline(tops[0], color=BLACK, linewidth=1, linestyle=(0, (2, 3)), alpha=0.6, zorder=1.5)
    steps = [xs[i] for i in best], [100 * points[i].accuracy for i in best]
    axes.step(*steps, where="post", color=BLACK, linewidth=1.2, alpha=0.8, zorder=3)


def _aside(values: dict[int, float]) -> dict[int, float]:
    """The costs, moved apart by `GAP` where they are the same."""
    low, high = min(values.values()), max(values.values())
    if high == low:
        return dict(values)
    plot = chart.Box(-chart.MARK, 0, 600 + chart.MARK, 0)  # about the pixels between the outermost points at 100 dpi
    scale = 600 / (high - low)
    moved = chart.apart([(value - low) * scale for value in values.values()], GAP, plot, [*values.values()])
    return {i: low + x / scale for i, x in zip(values, moved, strict=True)}


def _style(names: Sequence[str], name: str) -> dict[str, Any]:
    if name == UNPRUNED:
        return {"color": BLACK, "marker": "D", "markersize": 8.5}
    place = names.index(name)
    marker, size = MARKERS[place % len(MARKERS)]
    return {"color": COLOURS[place % len(COLOURS)], "marker": marker, "markersize": size}


def _handles(points: Sequence[Measured]) -> list[Any]:
    from matplotlib.lines import Line2D

    names = strategies(points)
    shown = [name for name in dict.fromkeys(point.name for point in points) if name == UNPRUNED] + names
    handles = [Line2D([], [], linestyle="none", label=_plain(n), **_style(names, n)) for n in shown]
    hollow: dict[str, Any] = {"marker": "o", "markerfacecolor": "white", "markeredgecolor": BLACK}
    handles.append(Line2D([], [], linestyle="none", markersize=7, label="hollow: another beats it", **hollow))
    if UNPRUNED in shown:
        handles.append(Line2D([], [], color=BLACK, linewidth=1, linestyle=(0, (2, 3)), label="accuracy unpruned"))
    handles.append(Line2D([], [], color=BLACK, linewidth=1.2, label="frontier"))
    return handles


def _plain(text: str) -> str:
    """One line that a font can be asked for: no control characters, no halves of a character."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " for c in whole)
