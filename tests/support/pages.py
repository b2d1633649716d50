"""What every page that anchorprune writes has to be: offline, decodable, and in order in a browser."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from itertools import combinations
from typing import Any

from PIL import Image


class Elements(HTMLParser):
    """Every element with its attributes, and all text outside of style."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def elements(text: str) -> Elements:
    parser = Elements()
    parser.feed(text)
    return parser


def embedded(text: str) -> list[Image.Image]:
    """Every image of the page, decoded."""
    found = []
    for data in re.findall(r"data:image/\w+;base64,([A-Za-z0-9+/=]+)", text):
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
        image.load()
        found.append(image)
    return found


def check_offline(text: str) -> None:
    """Nothing in the page makes a browser ask for anything, or run anything."""
    for tag, attributes in elements(text).found:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form", "video", "audio", "image"}, tag
        assert not [name for name in attributes if name.startswith("on")]
        for name, value in attributes.items():
            if name in {"src", "srcset", "poster", "xlink:href"} or (name == "href" and tag != "a"):
                # matplotlib's markers are `<use href="#…">`: a place in the page itself asks for nothing
                assert (value or "").startswith(("data:", "#")), (tag, name, value)
            if "url(" in (value or ""):
                assert name == "clip-path", (tag, name, value)  # a region of the same drawing
                assert re.fullmatch(r"url\(#[\w-]+\)", value or ""), (tag, name, value)
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert not re.search(r"url\(|@import|@font-face", styles)


def contrast(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """WCAG 2's contrast ratio of two colours, 0 … 255 each for red, green and blue."""

    def luminance(colour: tuple[float, ...]) -> float:
        parts = [part / 255 for part in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def check_charts_in_browser(found: dict[str, Any]) -> None:
    """Every text of a chart stands inside it, apart from the others, and stands out from the paper, as marks do."""

    def numbers(colour: str) -> tuple[float, ...]:
        return tuple(map(float, re.findall(r"[\d.]+", colour)[:3]))

    for drawn in found["drawings"]:
        paper, left, top, right, bottom = numbers(drawn["paper"]), *drawn["box"]
        assert drawn["texts"]
        for text, colour, (x0, y0, x1, y1) in drawn["texts"]:
            assert left - 1 <= x0 <= x1 <= right + 1, text
            assert top - 1 <= y0 <= y1 <= bottom + 1, text
            assert contrast(numbers(colour), paper) >= 4.5, text
        for (a, _, (left_a, top_a, right_a, bottom_a)), (b, _, box) in combinations(drawn["texts"], 2):
            # A pixel of leading may be shared: boxes are as high as a line, letters are not.
            across, down = min(right_a, box[2]) - max(left_a, box[0]), min(bottom_a, box[3]) - max(top_a, box[1])
            assert across <= 1 or down <= 2, (a, b)
        for colours in drawn["marks"]:
            assert max(contrast(numbers(colour), paper) for colour in colours) >= 3  # WCAG 2's for graphics


def check_in_browser(found: dict[str, Any], width: int, *, images: bool = True, charts: int = 1) -> None:
    """Nothing complained of, asked for, undecoded or sticking out; whether there are images, and how many charts."""
    assert found["console"] == []
    assert found["requests"] == []
    assert found["resources"] == []
    assert found["innerWidth"] == width
    assert found["scrollWidth"] <= width
    assert found["sticking_out"] == []
    assert bool(found["images"]) == images
    assert all(min(size) > 0 for size in found["images"])
    assert len(found["drawings"]) == charts
    check_charts_in_browser(found)
