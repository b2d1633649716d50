"""Results as rows of one table, for the terminal and for the page."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from anchorprune.evaluation.statistics import wilson
from anchorprune.strategies import known

MISSING = "–"


@dataclass(frozen=True)
class Row:
    """One way of pruning, or none, on one data set.

    Attributes:
        name, detail: what the tokens were chosen by, and how.
        block: the block at whose input they were dropped; None for an unpruned model.
        accuracy, low, high: top-1 with its 95 % interval, 0 … 1; of several draws the mean.
        draws: the accuracy of each draw.
        samples: images.
        tokens, all_tokens: from that block on, and before it.
        gmacs: multiply-adds of one image, in billions.
        images_per_second, speed_up: of the image tower; None where nothing was timed.
    """

    name: str
    detail: str
    block: int | None
    accuracy: float
    low: float
    high: float
    draws: tuple[float, ...]
    samples: int
    tokens: int
    all_tokens: int
    gmacs: float
    images_per_second: float | None = None
    speed_up: float | None = None

    @property
    def title(self) -> str:
        """Name and detail, as the name of a series."""
        return f"{self.name}, {self.detail}" if self.detail else self.name


@dataclass(frozen=True)
class Timing:
    """Seconds of one way of pruning and of the unpruned model, taken in turns on the same images.

    Attributes:
        images: in each repeat.
        seconds, unpruned: one number a repeat.
    """

    images: int
    seconds: Sequence[float]
    unpruned: Sequence[float]

    @property
    def images_per_second(self) -> float:
        return self.images / median(self.seconds)

    @property
    def ratios(self) -> list[float]:
        return [dense / pruned for dense, pruned in zip(self.unpruned, self.seconds, strict=True)]


def row(
    name: str, detail: str, results: Sequence[Mapping[str, Any]], all_tokens: int, timing: Timing | None = None
) -> Row:
    """The row of one result, or of several draws of the same pruning.

    The interval is that of one draw on these images: draws on the same images do not make them more.

    Args:
        results: as `results.read` gives them; single-label, so that they have `acc1`.
        all_tokens: tokens of the unpruned model, which its own result does not say.
    """
    first = results[0]
    pruning = first.get("pruning") or {}
    draws = tuple(result["metrics"]["acc1"] for result in results)
    accuracy = fmean(draws)
    low, high = wilson(accuracy, first["n_samples"])
    return Row(
        name=name,
        detail=detail,
        block=_first_block(pruning),
        accuracy=accuracy,
        low=low,
        high=high,
        draws=draws,
        samples=first["n_samples"],
        tokens=pruning.get("measured", {}).get("tokens_after", all_tokens),
        all_tokens=all_tokens,
        gmacs=first["cost"]["gmacs"],
        images_per_second=timing.images_per_second if timing else None,
        speed_up=median(timing.ratios) if timing else None,
    )


def _first_block(pruning: Mapping[str, Any]) -> int | None:
    """The block that a strategy acts in first, where a field of it says so."""
    strategy = known().get(str(pruning.get("strategy")))
    layers = pruning.get(strategy.layer_field) if strategy and strategy.layer_field else None
    return layers[0] if isinstance(layers, list) and layers else layers or None


COLUMNS = ("tokens kept by", "before block", "top-1", "95 % interval", "tokens", "GMACs", "images/s", "speed-up")


def cells(row: Row) -> list[str]:
    """The row under `COLUMNS`, as plain text."""
    return [
        f"{row.name} ({row.detail})" if row.detail else row.name,
        MISSING if row.block is None else str(row.block),
        percent(row.accuracy),
        f"{100 * row.low:.1f} to {100 * row.high:.1f}",
        str(row.tokens),
        f"{row.gmacs:.2f}",
        MISSING if row.images_per_second is None else f"{row.images_per_second:.0f}",
        MISSING if row.speed_up is None else times(row.speed_up),
    ]


def as_text(rows: Sequence[Row], width: int | None = None) -> str:
    """The table for a terminal."""
    return aligned([COLUMNS, *map(cells, rows)], width)


def aligned(lines: Sequence[Sequence[str]], width: int | None = None) -> str:
    """Lines of equally many cells, each column as wide as its widest: the first flush left, the others right.

    Where they are wider than `width` (None: however wide), `stacked` instead.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    if width is not None and sum(widths) + 2 * (len(widths) - 1) > width:
        return stacked(lines, width)
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def stacked(lines: Sequence[Sequence[str]], width: int) -> str:
    """The same for a narrow terminal: each line's first cell, and below it the others, each with its column's name."""
    columns, *rows = lines
    blocks = []
    for row in rows:
        named = [f"{column} {cell}" for column, cell in zip(columns[1:], row[1:], strict=True) if cell.strip()]
        whole = [cell.replace(" ", _WHOLE) for cell in named]  # no cell is broken in two
        text = textwrap.fill(
            ", ".join(whole), width, initial_indent="  ", subsequent_indent="  ", break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip
        blocks.append(f"{row[0]}\n{text}".replace(_WHOLE, " "))
    return "\n".join(blocks)


_WHOLE = "\x00"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def times(ratio: float) -> str:
    return f"{ratio:.2f}×"
