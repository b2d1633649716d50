"""The chart of `anchorprune speed`: each way's speed-up, repeat by repeat, beside what its FLOPs promise."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from anchorprune.files import write_bytes
from anchorprune.report import figures
from anchorprune.report.figures import COLOURS, DASHES

ROW = 30  # pixels


class Speed(Protocol):
    """One way at one batch size; no strategy: the unpruned tower. `milliseconds` are those of each repeat."""

    @property
    def name(self) -> str: ...
    @property
    def strategy(self) -> object: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def milliseconds(self) -> Sequence[float]: ...
    @property
    def speed_up(self) -> float: ...
    @property
    def speed_up_by_flops(self) -> float: ...


@figures.look()
def write_png(speeds: Sequence[Speed], path: str | os.PathLike[str], title: str) -> None:
    """Write one row for each way and batch size, all of the file or nothing.

    A bar ends at the median speed-up, the dots are its repeats, the upright stroke is what the FLOPs promise.

    Args:
        speeds: at least one, each batch size's unpruned tower among them.
        title: above the chart.

    Raises:
        OSError: the file cannot be written.
    """
    batches = list(dict.fromkeys(speed.batch_size for speed in speeds))
    pruned = [speed for speed in speeds if speed.strategy]
    dense = {speed.batch_size: speed for speed in speeds if not speed.strategy}
    ink, grey = COLOURS["ink"], COLOURS["series7"]
    figure, (axes,) = figures.new(860, 120 + ROW * len(pruned), title=title)
    for row, speed in enumerate(pruned):
        colour = figures.series_colour(batches.index(speed.batch_size))
        axes.barh(row, speed.speed_up, height=0.62, color=colour, alpha=0.35)
        pairs = zip(dense[speed.batch_size].milliseconds, speed.milliseconds, strict=True)
        ratios = [a / b for a, b in pairs]
        axes.plot(ratios, [row] * len(ratios), ".", color=colour, markersize=5)
        axes.plot([speed.speed_up_by_flops] * 2, [row - 0.36, row + 0.36], color=ink, linewidth=2)
    axes.axvline(1.0, color=ink, linewidth=1, linestyle=DASHES)
    axes.set_yticks(range(len(pruned)), [figures.plain(f"{s.name}, batch {s.batch_size}") for s in pruned])
    axes.set_ylim(len(pruned) - 0.4, -0.6)
    axes.set_xlim(left=0)
    axes.set_xlabel("times as fast as the unpruned tower")
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    handles = [
        Patch(facecolor=grey, alpha=0.35, label="median"),
        Line2D([], [], linestyle="none", marker=".", color=grey, label="one repeat"),
        Line2D([], [], color=ink, linewidth=2, label="by FLOPs"),
    ]
    figures.settle(figure, handles)
    write_bytes(figures.as_png(figure), path)
