"""docs/accuracy.svg, the README's picture: the main table of docs/results.md as accuracy against compute.

    python tools/readme_chart.py

Caltech's two halves together: 6,076 photographs that took no part in any choice of a setting.
"""

from __future__ import annotations

import re
from pathlib import Path

from anchorprune.evaluation.statistics import wilson
from anchorprune.report import sweep_chart
from anchorprune.report.figures import PALETTE
from anchorprune.report.frontier import UNPRUNED, Measured

DOCS = Path(__file__).resolve().parent.parent / "docs"
HALVES = (2981, 3095)  # images
_ROW = re.compile(
    r"^\| (?:\*\*)?(everything|`(\w+) [^`]*`)(?:\*\*)? \| ([\d.]+) \| ([\d.]+)[^|]* \| ([\d.]+)[^|]* \|", re.M
)


def points() -> list[Measured]:
    """The rows of the table under "Strategies at equal compute"."""
    text = (DOCS / "results.md").read_text(encoding="utf-8")
    table = text.partition("## Strategies at equal compute")[2].partition("`coarse` minus the others")[0]
    found = []
    for _, name, gmacs, odd, even in _ROW.findall(table):
        share = sum(float(acc) * n for acc, n in zip((odd, even), HALVES, strict=True)) / sum(HALVES) / 100
        low, high = wilson(share, sum(HALVES))
        found.append(Measured(name or UNPRUNED, "", float(gmacs), None, share, low, high))
    return found


def alone(svg: str) -> str:
    """The chart as a file of its own, light or dark as its reader's screen is."""
    light, dark = (
        ";".join(f"--{name}:{colours[shade]}" for name, colours in PALETTE.items() if f"--{name})" in svg)
        for shade in (0, 1)
    )
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>"
    head, _, rest = svg.partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">{style}{rest}\n'


if __name__ == "__main__":
    svg = sweep_chart.svg(points(), "gmacs", {}, "accuracy", width=760, height=400)
    (DOCS / "accuracy.svg").write_text(alone(svg), encoding="utf-8")
