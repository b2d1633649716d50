"""The pages' templates: whatever comes from data is escaped by Jinja2, and only there."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from anchorprune.report.figures import PALETTE
from anchorprune.report.pictures import data_uri


def html(template: str, **values: object) -> str:
    """A page from its template."""
    return _environment().get_template(template).render(values)


def typed(text: str) -> Markup:
    """What one types, escaped, with no flag broken at its own hyphens."""
    return Markup(re.sub(r"--\w+", r'<span class="flag">\g<0></span>', str(escape(text))))


def prose(text: str) -> Markup:
    """A sentence, escaped: flags whole, a number and its percent sign on one line."""
    return typed(text.replace(" %", "\N{NO-BREAK SPACE}%"))


def _environment() -> Environment:
    folder = Path(__file__).with_name("templates")
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(typed=typed, prose=prose, data_uri=data_uri)
    environment.globals["palette"] = PALETTE
    return environment
