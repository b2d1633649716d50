"""Figures by matplotlib, for a page as SVG and as PNG: their colours, their look, and where labels find room.

A figure has 72 dots an inch while it is built, so a point, a pixel of the SVG and matplotlib's own pixel are the same.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any, Literal
from xml.etree import ElementTree

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

# Each colour in light and in dark mode: the pages' CSS variables. Those of the series are Okabe and Ito's, which the
# colour-blind tell apart, darkened for light paper and lightened for dark; the grey is ours. The first five are dark
# enough for text too.
PALETTE: Mapping[str, tuple[str, str]] = {
    "paper": ("#fbfaf7", "#15181d"),
    "card": ("#ffffff", "#1d2127"),
    "ink": ("#1d2127", "#e9e7e2"),
    "soft": ("#565d66", "#a9b0b9"),
    "rule": ("#dcd9d1", "#363c45"),
    "grid": ("#e8e5dd", "#2a2f37"),
    "link": ("#0a5c99", "#7cc0ee"),
    "good": ("#0b6b4b", "#4fd0a3"),
    "bad": ("#a8420a", "#ff9d63"),
    "series0": ("#c94a00", "#ff7a33"),
    "series1": ("#0069a6", "#4a98e0"),
    "series2": ("#00835f", "#1fc796"),
    "series3": ("#b8438a", "#e08fbf"),
    "series4": ("#7c7000", "#f0e442"),
    "series5": ("#b36f00", "#e69f00"),
    "series6": ("#2386bd", "#7cc9f4"),
    "series7": ("#6d737b", "#a3a9b1"),
}
COLOURS = {name: light for name, (light, _) in PALETTE.items()}  # what figures are drawn with
# Nine shapes and eight colours: 72 series before two look the same. The sizes make them look equally large.
MARKERS = (("o", 9.5), ("s", 9), ("^", 10), ("v", 10), ("P", 11), ("X", 11), ("*", 14.5), ("<", 10), ("h", 10.5))
MARK = 6.5  # half a marker's size, about
DASHES = (0, (3, 4))
DPI = 144  # of a PNG: two of its pixels for each of the SVG
LOOK = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # matplotlib's own, and so the same everywhere; the page sets its own
    "font.size": 12,
    "text.parse_math": False,
    "text.color": COLOURS["soft"],
    "axes.facecolor": "none",
    "axes.labelcolor": COLOURS["soft"],
    "axes.edgecolor": COLOURS["soft"],
    "axes.labelsize": 12,
    "axes.titlesize": 12,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "ytick.major.size": 0,
    "grid.color": COLOURS["grid"],
    "figure.facecolor": COLOURS["card"],
    "axes.labelpad": 6,
    "legend.frameon": False,
    "legend.fontsize": 13,
    "legend.borderpad": 0.1,
    "legend.labelcolor": COLOURS["ink"],
    "legend.handlelength": 1.4,
    "legend.columnspacing": 1.4,
    "legend.labelspacing": 0.6,
    "svg.fonttype": "none",
}


Side = Literal["left", "right", "center"]
Taken = tuple[float, float, float, float, float]  # left, bottom, right, top, and how bad it is to cover each pixel
SOLID = 100.0  # a marker or a text; a thin line is 1


@contextmanager
def look() -> Iterator[None]:
    """Whatever the user's matplotlibrc says, figures look alike; to be in force from building to saving."""
    with matplotlib.style.context(["default", LOOK]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")  # a title in Chinese: boxes, no complaint
        yield


def new(width: float, height: float, columns: int = 1, title: str = "") -> tuple[Figure, list[Axes]]:
    """A figure of this many pixels, before its legend, with axes side by side.

    Args:
        title: above them, with a margin around everything; none for a page, which has both.
    """
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    FigureCanvasAgg(figure)
    margin = (12 if title else 4) / 72
    figure.set_layout_engine("constrained", w_pad=margin, h_pad=margin)
    if title:
        figure.suptitle(plain(title), fontsize=15, color=COLOURS["ink"])
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def scale(axes: Axes, x: tuple[float, float], y: tuple[float, float]) -> None:
    """Both axes from one number to another, with as many round ticks as have room."""
    axes.set_xlim(*x)
    axes.set_ylim(*y)
    width, height = axes.figure.bbox.width / axes.get_gridspec().ncols, axes.figure.bbox.height  # type: ignore[union-attr]
    steps = [1, 2, 2.5, 5, 10]
    axes.xaxis.set_major_locator(MaxNLocator(max(5, round(width / 90)), steps=steps))
    axes.yaxis.set_major_locator(MaxNLocator(max(4, round(height / 60)), steps=steps))


def settle(figure: Figure, handles: Sequence[Any]) -> None:
    """Put the legend below, in as many columns as fit, and give everything its place for good.

    From here on pixels can be measured: `apart` and `label` need that.
    """
    for rows in range(1, len(handles) + 1):
        columns = math.ceil(len(handles) / rows)
        legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        box = legend.get_window_extent()
        if box.width <= figure.bbox.width or columns == 1:
            break
        legend.remove()
    figure.set_figheight(figure.get_figheight() + box.height / 72)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def mark(place: int | None, *, hollow: bool = False) -> dict[str, Any]:
    """How the series at a place is drawn, as arguments of `Line2D`; None is the unpruned model, a dark diamond."""
    shape, size = ("D", 9.5) if place is None else MARKERS[place % len(MARKERS)]
    colour = series_colour(place)
    edge = {"markeredgecolor": colour, "markeredgewidth": 1.5} if hollow else {"markeredgecolor": COLOURS["card"]}
    face = COLOURS["card"] if hollow else colour
    return {"linestyle": "none", "marker": shape, "markersize": size, "markerfacecolor": face, "color": colour, **edge}


def series_colour(place: int | None) -> str:
    return COLOURS["ink"] if place is None else COLOURS[f"series{place % 8}"]


def key(name: str, figure: Figure, **style: Any) -> Line2D:
    """An entry of the legend; a long name is broken into lines that the figure has room for."""
    return Line2D([], [], label=textwrap.fill(plain(name), int(figure.bbox.width / 8) - 4), **style)


def plain(text: str) -> str:
    """One line that a font can be asked for: no control characters, no halves of a character."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(c if c.isprintable() else " " for c in whole)


def apart(axes: Axes, xs: Sequence[float], gap: float) -> list[float]:
    """The positions along x, moved as little as may be so that neighbours are `gap` pixels apart, in their order.

    Where they would not fit, they are as far apart as they can be. Of equal ones the first comes first.
    """
    pixels = axes.transData.transform([(x, 0.0) for x in xs])[:, 0]
    left, right = axes.bbox.x0 + MARK, axes.bbox.x1 - MARK
    gap = min(gap, (right - left) / max(1, len(xs) - 1))
    order = sorted(range(len(xs)), key=lambda i: (xs[i], i))
    # Less `gap` times their rank the new positions may not fall: isotonic regression, by pooling those that would.
    pools: list[list[float]] = []
    for rank, i in enumerate(order):
        pools.append([pixels[i] - rank * gap])
        while len(pools) > 1 and fmean(pools[-2]) >= fmean(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    levels = [min(max(fmean(pool), left), right - gap * (len(xs) - 1)) for pool in pools for _ in pool]
    moved = {i: level + rank * gap for rank, (i, level) in enumerate(zip(order, levels, strict=True))}
    return [float(x) for x, _ in axes.transData.inverted().transform([(moved[i], 0.0) for i in range(len(xs))])]


def label(axes: Axes, texts: Sequence[tuple[float, float, str, dict[str, Any]]], occupied: Sequence[Taken]) -> None:
    """Write texts beside their points, where they cover as little as may be; a far one gets a line to its point.

    Args:
        texts: x and y, the text and its style.
        occupied: what they had better not cover, as from `taken`.
    """
    covered = list(occupied)
    shifts = [0.0, *(sign * 8.0 * step for step in range(1, 16) for sign in (1, -1))]
    for x, y, text, style in texts:
        here = axes.transData.transform((x, y))
        written = axes.annotate(plain(text), (x, y), (0, 0), textcoords="offset points", va="center", **style)
        extent = written.get_window_extent()
        width, height = extent.width + 2, extent.height + 2
        sides: list[tuple[Side, float]] = [("left", MARK + 4), ("right", -MARK - 4), ("center", 0.0)]
        places = [(dy, side, dx) for dy in shifts for side, dx in sides]  # what side of the text is near its point
        lefts = {"left": 0.0, "right": -width, "center": -width / 2}
        boxes = np.array([(dx + lefts[side], dy - height / 2) for dy, side, dx in places]) + here
        boxes = np.hstack([boxes, np.add(boxes, (width, height))])
        outside = (boxes[:, :2] < axes.bbox.min).any(1) | (boxes[:, 2:] > axes.bbox.max).any(1)
        best = int((_cover(boxes, covered) + 0.6 * abs(boxes[:, 1] - boxes[0, 1]) + 1e9 * outside).argmin())
        covered.append((*boxes[best], SOLID))
        dy, side, dx = places[best]
        written.set_horizontalalignment(side)
        written.set_position((dx, dy))
        if abs(dy) > height or side == "center":
            end = (dx, dy) if side != "center" else (0, dy - math.copysign(height / 2, dy))
            line = {"arrowstyle": "-", "linewidth": 0.75, "alpha": 0.6, "shrinkA": 0, "shrinkB": 0}
            line["color"] = style["color"]
            axes.annotate("", (x, y), end, textcoords="offset points", arrowprops=line, zorder=1.9)


def _cover(boxes: np.ndarray, covered: Sequence[Taken]) -> np.ndarray:
    """How bad it is to write in each of the boxes: the areas that it shares, by their weights."""
    others = np.array(covered)
    low, high = np.maximum(boxes[:, None, :2], others[:, :2]), np.minimum(boxes[:, None, 2:], others[:, 2:4])
    return (np.clip(high - low, 0, None).prod(2) * others[:, 4]).sum(1)


def interval(
    axes: Axes, x: float, y: float, low: float, high: float, colour: str, *, caps: float = 0, alpha: float = 0.75
) -> None:
    """A bar from `low` to `high` through a point, with caps this wide at its ends."""
    # A share that was rounded may lie a hair outside its own interval; a bar cannot have a negative length.
    around = [[max(0.0, y - low)], [max(0.0, high - y)]]
    axes.errorbar([x], [y], around, fmt="none", color=colour, elinewidth=1.25, capsize=caps, alpha=alpha, zorder=2)


def taken(axes: Axes, x: float, y: float, low: float, high: float, caps: float = 0) -> list[Taken]:
    """What a marker and its interval with such caps cover."""
    middle, bottom, top = axes.transData.transform([(x, y), (x, low), (x, high)])
    return [
        (*(middle - MARK - 1), *(middle + MARK + 1), SOLID),
        (bottom[0] - 1, bottom[1], top[0] + 1, top[1], 1.0),
        *((end[0] - caps, end[1] - 1, end[0] + caps, end[1] + 1, 1.0) for end in (bottom, top)),
    ]


def as_svg(figure: Figure, ident: str, title: str, description: str) -> str:
    """The figure for a page, in the page's colours: text is text, and the same figure gives the same characters.

    Args:
        ident: begins its element ids, which must differ within a page.
        title, description: what it shows, for those who cannot see it.
    """
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({"svg.hashsalt": ident}):
        figure.savefig(written, format="svg", metadata=nothing)
    root = ElementTree.fromstring(written.getvalue())
    root.remove(root[0])  # a style sheet that would hold for the whole page
    referred = {"clipPath", "path"}
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # HTML knows SVG without namespaces
        if element.tag in referred and "id" in element.attrib:
            element.set("id", f"{ident}-{element.get('id')}")
        else:
            element.attrib.pop("id", None)
        for name, value in [*element.attrib.items()]:
            if name.endswith("}href"):
                del element.attrib[name]
                element.set("href", value.replace("#", f"#{ident}-"))
            elif name == "clip-path":
                element.set(name, value.replace("#", f"#{ident}-"))
            elif name == "style":
                for variable, colour in COLOURS.items():
                    value = value.replace(colour, f"var(--{variable})")
                element.set(name, value)
    width, height = (f"{size:g}" for size in figure.bbox.size)
    root.attrib = {
        "class": "chart", "viewBox": f"0 0 {width} {height}", "width": width, "height": height, "role": "img",
        "aria-labelledby": f"{ident}-title {ident}-desc", "style": f"max-width: {width}px",
    }  # fmt: skip
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        words = ElementTree.Element(tag, {"id": f"{ident}-{tag}"})
        words.text = text
        root.insert(place, words)
    return ElementTree.tostring(root, encoding="unicode")


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG, on white."""
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=DPI, metadata={"Software": None})
    return written.getvalue()
