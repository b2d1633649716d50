"""Docstrings as the site's parser wants them: `a, b: text` of a section is of each of them. An extension of griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*(?:\n\1 +\S.*)*)", re.MULTILINE)


class SharedLines(griffe.Extension):
    """Gives each of the names that share a line a line of its own."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = SHARED.sub(apart, obj.docstring.value)


def apart(shared: re.Match[str]) -> str:
    indent, names, text = shared.groups()
    return "\n".join(f"{indent}{name}: {text}" for name in names.split(", "))
