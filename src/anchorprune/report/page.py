"""One offline HTML file: no script, no font, no request. What comes from data is escaped here, and only here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from anchorprune.report import chart, table
from anchorprune.report.chart import Point
from anchorprune.report.pictures import Picture, Prediction, data_uri, legend_pictures
from anchorprune.report.table import Row, unbroken

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
        section("The numbers", table.as_html(page.rows, "Accuracy, tokens and cost"), notes(page.rows_notes)),
    ]
    if page.points:
        sections.append(section("Accuracy against compute", _chart(page)))
    if page.pictures:
        sections.append(section("What was kept", notes(page.pictures_notes, ""), _legend(), _cards(page.pictures)))
    if page.facts or page.command:
        sections.append(section("How it was measured", measuring(page.facts, page.command)))
    return document(page.title, page.kicker, page.findings, sections, _credits(page.credits))


def document(title: str, kicker: str, findings: Sequence[str], sections: Sequence[str], footer: str = "") -> str:
    """A whole HTML document around sections: a kicker, the title, and paragraphs with the findings first.

    Args:
        title, kicker, findings: plain text.
        sections, footer: HTML.
    """
    return (
        "<!doctype html>\n"
        '<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # A browser that opens the file asks for nothing else, not even for an icon.
        '<link rel="icon" href="data:,">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n<header>\n"
        f'<p class="kicker">{_text(kicker)}</p>\n<h1>{_text(title)}</h1>\n'
        f"{notes(findings, 'lead')}\n</header>\n<main>\n" + "\n".join(sections) + "\n</main>\n"
        f"<footer>\n{footer}\n</footer>\n</body>\n</html>\n"
    )


def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def section(heading: str, *content: str) -> str:
    """A section of a page: its heading in plain text, its content in HTML."""
    return (
        f"<section>\n<h2>{html.escape(heading)}</h2>\n" + "\n".join(part for part in content if part) + "\n</section>"
    )


def notes(paragraphs: Sequence[str], kind: str = "note") -> str:
    """Plain text as HTML paragraphs of a class, or of none where `kind` is empty."""
    style = f' class="{kind}"' if kind else ""
    return "\n".join(f"<p{style}>{_text(text)}</p>" for text in paragraphs)


def _text(text: str) -> str:
    """Escaped; a number and its percent sign stay on one line."""
    return unbroken(html.escape(text)).replace(" %", "\N{NO-BREAK SPACE}%")


def _chart(page: Page) -> str:
    wide = chart.svg(page.points, "wide").replace('class="chart"', 'class="chart wide"', 1)
    narrow = chart.svg(page.points, "narrow", 343, 440).replace('class="chart"', 'class="chart narrow"', 1)
    caption = " ".join(_text(note) for note in page.chart_notes)
    return (
        f'<figure>\n<div class="plot">\n{wide}\n{narrow}\n{chart.legend(page.points)}\n</div>\n'
        f"<figcaption>{caption}</figcaption>\n</figure>"
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


def measuring(facts: Mapping[str, str], command: str) -> str:
    """How it was measured, name -> value, and what to type to get the page; plain text."""
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in facts.items())
    return f'<dl class="facts">{items}</dl>\n{code(command)}'


def code(command: str) -> str:
    """A command as it is typed; nothing where there is none."""
    return f"<pre><code>{unbroken(html.escape(command))}</code></pre>" if command else ""


def _credits(credits: Sequence[tuple[str, Sequence[Link]]]) -> str:
    paragraphs = []
    for text, links in credits:
        named = "".join(f' <a href="{html.escape(address)}">{html.escape(name)}</a>' for name, address in links)
        paragraphs.append(f"<p>{html.escape(text)}{named}</p>")
    return "\n".join(paragraphs)
