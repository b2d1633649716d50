"""The chart of `anchorprune speed`: each way's speed-up, repeat by repeat, beside what its FLOPs promise."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

from anchorprune.report.png import BLACK, COLOURS, DPI
from anchorprune.results import write_bytes

if TYPE_CHECKING:
    from anchorprune.speed import Speed

ROW = 0.42  # inches


def write_png(speeds: Sequence[Speed], path: str | os.PathLike[str], title: str) -> None:
    """Write one row for each way and batch size, all of the file or nothing.

    A bar ends at the median speed-up, the dots are its repeats, the upright stroke is what the FLOPs promise.

    Args:
        speeds: at least one, each batch size's unpruned tower among them.
        title: above the chart.

    Raises:
        OSError: the file cannot be written.
    """
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    batches = list(dict.fromkeys(speed.batch_size for speed in speeds))
    pruned = [speed for speed in speeds if speed.strategy]
    dense = {speed.batch_size: speed for speed in speeds if not speed.strategy}
    content = io.BytesIO()
    with matplotlib.style.context("default"), warnings.catch_warnings():  # whatever the user's matplotlibrc says
        warnings.filterwarnings("ignore", message=r"Glyph .* missing")
        figure = Figure(figsize=(10.0, 1.9 + ROW * len(pruned)), dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=12, parse_math=False)
        axes = figure.subplots()
        for row, speed in enumerate(pruned):
            colour = COLOURS[(1 + batches.index(speed.batch_size)) % len(COLOURS)]
            axes.barh(row, speed.speed_up, height=0.62, color=colour, alpha=0.35)
            pairs = zip(dense[speed.batch_size].milliseconds, speed.milliseconds, strict=True)
            ratios = [a / b for a, b in pairs]
            axes.plot(ratios, [row] * len(ratios), ".", color=colour, markersize=4)
            axes.plot([speed.speed_up_by_flops] * 2, [row - 0.36, row + 0.36], color=BLACK, linewidth=2)
        axes.axvline(1.0, color=BLACK, linewidth=1, linestyle=(0, (2, 3)))
        axes.set_yticks(range(len(pruned)), [f"{s.name}, batch {s.batch_size}" for s in pruned], parse_math=False)
        axes.set_ylim(len(pruned) - 0.4, -0.6)
        axes.set_xlim(left=0)
        axes.set_xlabel("times as fast as the unpruned tower")
        axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        grey = "#777777"
        handles = [
            Patch(facecolor=grey, alpha=0.35, label="median"),
            Line2D([], [], linestyle="none", marker=".", color=grey, label="one repeat"),
            Line2D([], [], color=BLACK, linewidth=2, label="by FLOPs"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(content, format="png")
    write_bytes(content.getvalue(), path)
