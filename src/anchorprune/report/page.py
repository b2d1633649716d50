"""One offline HTML file: no script, no font, no request. What comes from data is escaped here, and only here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anchorprune.report import chart, table
from anchorprune.report.chart import Point
from anchorprune.report.pictures import Picture, Prediction, data_uri, legend_pictures
from anchorprune.report.table import Row

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
    sections = [
        _section("The numbers", table.as_html(page.rows, "Accuracy, tokens and cost"), _notes(page.rows_notes)),
    ]
    if page.points:
        sections.append(_section("Accuracy against compute", _chart(page)))
    if page.pictures:
        sections.append(_section("What was kept", _notes(page.pictures_notes, ""), _legend(), _cards(page.pictures)))
    if page.facts or page.command:
        sections.append(_section("How it was measured", _facts(page)))
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # A browser that opens the file asks for nothing else, not even for an icon.
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(page.title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n<header>\n"
        f'<p class="kicker">{_text(page.kicker)}</p>\n<h1>{_text(page.title)}</h1>\n'
        f"{_notes(page.findings, 'lead')}\n</header>\n<main>\n" + "\n".join(sections) + "\n</main>\n"
        f"<footer>\n{_credits(page.credits)}\n</footer>\n</body>\n</html>\n"
    )


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def _section(heading: str, *content: str) -> str:
    return (
        f"<section>\n<h2>{html.escape(heading)}</h2>\n" + "\n".join(part for part in content if part) + "\n</section>"
    )


def _notes(paragraphs: Sequence[str], kind: str = "note") -> str:
    style = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{style}>{_text(text)}</p>" for text in paragraphs)


def _text(text: str) -> str:
    """Escaped; a number and its percent sign stay on one line."""
    return html.escape(text).replace(" %", "\N{NO-BREAK SPACE}%")


def _chart(page: Page) -> str:
    wide = chart.svg(page.points, "wide").replace('class="chart"', 'class="chart wide"', 1)
    narrow = chart.svg(page.points, "narrow", 343, 440).replace('class="chart"', 'class="chart narrow"', 1)
    notes = " ".join(_text(note) for note in page.chart_notes)
    return (
        f'<figure>\n<div class="plot">\n{wide}\n{narrow}\n{chart.legend(page.points)}\n</div>\n'
        f"<figcaption>{notes}</figcaption>\n</figure>"
    )


def _legend() -> str:
    items = "".join(
        f'<li><img src="{data_uri(image, "PNG")}" alt="" width="{image.width}" height="{image.height}">'
        f"{html.escape(name)}</li>"
        for image, name in legend_pictures()
    )
    return f'<ul class="legend marks">{items}</ul>'


def _cards(pictures: Sequence[Picture]) -> str:
    return '<ul class="cards">\n' + "\n".join(map(_card, pictures)) + "\n</ul>"


def _card(picture: Picture) -> str:
    size = f'width="{picture.original.width}" height="{picture.original.height}"'
    truth = html.escape(picture.truth)
    guesses = "".join(map(_guess, picture.predictions))
    return (
        f'<li class="card">\n<h3>{truth}</h3>\n<p class="what">{html.escape(picture.what)}</p>\n<div class="pair">\n'
        f'<img src="{data_uri(picture.original)}" {size} alt="The photograph as the model saw it: {truth}">\n'
        f'<img src="{data_uri(picture.kept)}" {size} alt="{html.escape(picture.kept_in_words)}">\n</div>\n'
        f'<ul class="guesses">{guesses}</ul>\n</li>'
    )


def _guess(prediction: Prediction) -> str:
    kind, sign, word = ("right", "✓", "right") if prediction.right else ("wrong", "✗", "wrong")
    return (
        f'<li><span class="by">{html.escape(prediction.by)}</span>'
        f'<span class="{kind}" role="img" aria-label="{word}">{sign}</span> {html.escape(prediction.name)}</li>'
    )


def _facts(page: Page) -> str:
    facts = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in page.facts.items())
    command = f"<pre><code>{html.escape(page.command)}</code></pre>" if page.command else ""
    return f'<dl class="facts">{facts}</dl>\n{command}'


def _credits(credits: Sequence[tuple[str, Sequence[Link]]]) -> str:
    paragraphs = []
    for text, links in credits:
        named = "".join(f' <a href="{html.escape(address)}">{html.escape(name)}</a>' for name, address in links)
        paragraphs.append(f"<p>{html.escape(text)}{named}</p>")
    return "\n".join(paragraphs)
