"""The documentation site: every page, every flag of every command and every public name is in it."""

from __future__ import annotations

import argparse
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

import anchorprune
from anchorprune.commands import build_parser

ROOT = Path(__file__).resolve().parent.parent
CONFIG = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
COMMANDS = build_parser()._subparsers._group_actions[0].choices


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    """tools/site_pages.py"""
    pytest.importorskip("mkdocs")
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r": ([\w./-]+\.md)$", CONFIG, re.MULTILINE)
    assert {path.name for path in (ROOT / "docs").glob("*.md")} <= set(named)
    assert len(named) == len(set(named))


def test_nothing_is_fetched_from_elsewhere_when_it_is_read() -> None:
    assert "font: false" in CONFIG
    assert "http" not in re.sub(r"#.*", "", CONFIG)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_of_a_command_is_on_its_page(name: str, pages: ModuleType) -> None:
    page = pages.command_page(name, COMMANDS[name])
    shown = [action for action in COMMANDS[name]._actions if action.help is not argparse.SUPPRESS]
    flags = {option for action in shown for option in action.option_strings} - {"-h", "--help"}
    assert {flag for flag in flags if f"`{flag}`" not in page} == set()


def test_every_public_name_is_documented(pages: ModuleType) -> None:
    text = pages.python_page() + pages.handle_page()
    names = set(re.findall(r"^::: [\w.]+\.(\w+)$", text, re.MULTILINE))
    assert names == set(anchorprune.__all__) - {"__version__"}


def test_what_code_hosts_read_otherwise_is_rewritten(pages: ModuleType) -> None:
    shown = pages.on_page_markdown(
        "[a](../README.md#x) [b](../CONTRIBUTING.md)\n\n```csv photos.csv\n  - as it is\n```\n"
    )
    assert shown == '[a](index.md#x) [b](contributing.md)\n\n```csv title="photos.csv"\n  - as it is\n```\n'


def test_what_a_screen_reader_and_a_narrow_screen_need_is_put_into_a_page(pages: ModuleType) -> None:
    shown = pages.on_page_content("<th></th><code>x --keep_patches 3</code><pre><code>--r 3</code></pre>")
    assert shown == ('<td></td><code>x <span class="flag">--keep_patches</span> 3</code><pre><code>--r 3</code></pre>')
