"""What every page that anchorprune writes has to be: offline, decodable, and in order in a browser."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
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
        assert tag not in {"script", "iframe", "object", "embed", "base", "form", "video", "audio", "image", "use"}, tag
        assert not [name for name in attributes if name.startswith("on")]
        for name, value in attributes.items():
            if name in {"src", "srcset", "poster", "xlink:href"} or (name == "href" and tag != "a"):
                assert (value or "").startswith("data:"), (tag, name, value)
    styles = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert "url(" not in text.replace(styles, "")
    assert not re.search(r"url\(|@import|@font-face", styles)


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
    assert len([shown for shown in found["charts"] if shown > 0]) == charts
