"""The demo's page: one offline HTML file, no script, no font, no request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from anchorprune.report import chart, table
from anchorprune.report.chart import Point
from anchorprune.report.pictures import Picture, legend_pictures
from anchorprune.report.table import Row
from anchorprune.report.templating import html

Link = tuple[str, str]  # text and address


@dataclass(frozen=True)
class Page:
    """What a page says; every text is plain text.

    Attributes:
        title: the headline, the result in words.
        kicker: a line above it: what this is.
        findings: paragraphs below it.
        rows, rows_notes: the table and the paragraphs below it.
        points, chart_notes: the chart and its caption.
        pictures, pictures_notes: kept tokens, and the paragraphs above them.
        facts: how it was measured, name -> value.
        command: what to type to get this page.
        credits: attribution, each a text and the links that follow it.
    """

    title: str
    kicker: str
    findings: Sequence[str]
    rows: Sequence[Row]
    rows_notes: Sequence[str] = ()
    points: Sequence[Point] = ()
    chart_notes: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    pictures_notes: Sequence[str] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    credits: Sequence[tuple[str, Sequence[Link]]] = ()


def render(page: Page) -> str:
    """The page as one HTML document."""
    return html(
        "page.html",
        page=page,
        columns=table.COLUMNS,
        lines=[(row.name, row.detail, table.cells(row)[1:]) for row in page.rows],
        charts=[("", chart.svg(page.points, "wide"), chart.svg(page.points, "narrow", 343, 440))]
        if page.points
        else [],
        legend=legend_pictures(),
    )
