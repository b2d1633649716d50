"""The pages that nobody writes: commands from their parsers, Python from docstrings, results from their schema.

A hook of mkdocs (`mkdocs.yml`); what it makes exists in the site alone.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import anchorprune
from anchorprune.commands import build_parser
from anchorprune.fields import Fields

ROOT = Path(__file__).resolve().parent.parent
SCHEMA = ROOT / "src/anchorprune/evaluation/result.schema.json"
# Pages of the repository's root, by what they are called in the site.
OUTSIDE = {"CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "report-a-hole.md"}
COMMANDS = "reference/commands"
# The folders that public names live in, in the order of a reader's questions.
TOPICS = {
    "pruning": "Pruning",
    "strategies": "Strategies",
    "tokens": "What a strategy sees and says",
    "evaluation": "Evaluating",
    "studies": "Comparing and choosing",
    "tasks": "Tasks",
    "datasets": "Data",
    "models": "Models",
    "embeddings": "Encoding",
    "errors": "Errors",
}
HANDLE = "Pruning"  # has a page of its own


def on_config(config: MkDocsConfig) -> None:
    """Each command's page is in the navigation."""
    pages = [{name: f"{COMMANDS}/{name}.md"} for name in parsers()]
    for section in config.nav or []:
        for entry in next(iter(section.values())) if isinstance(section, dict) else []:
            if isinstance(entry, dict) and entry.get("Commands") == COMMANDS:
                entry["Commands"] = pages


def on_files(files: Files, config: MkDocsConfig) -> None:
    """The pages are among the files."""
    made = {f"{COMMANDS}/{name}.md": command_page(name, parser) for name, parser in parsers().items()}
    made["reference/python.md"] = python_page()
    made["reference/handle.md"] = handle_page()
    made["reference/results.md"] = schema_page(json.loads(SCHEMA.read_text(encoding="utf-8")))
    made["reference/result.schema.json"] = SCHEMA.read_text(encoding="utf-8")
    for name, page in OUTSIDE.items():
        made[page] = (ROOT / name).read_text(encoding="utf-8")
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """What a code host shows, as mkdocs wants it: links out of docs/, names beside a fence, lists within lists."""
    for name, page in {**OUTSIDE, "README.md": "index.md"}.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(name)}([)#])", rf"]({page}\2", markdown)
    markdown = re.sub(r"\]\(docs/", "](", markdown)
    blocks = re.split(r"^(```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    blocks[::2] = [re.sub(r"^ {2,3}(?=(?:[-*]|\d+\.) )", "    ", text, flags=re.MULTILINE) for text in blocks[::2]]
    return re.sub(r"^```(\w+) (\S+\.\w+)$", r'```\1 title="\2"', "".join(blocks), flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """A flag is not broken in two at a line's end, and a column without a name is no empty header."""
    parts = re.split(r"(<pre.*?</pre>)", html, flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"(<code>)(.*?)(</code>)", _whole_flags, parts[i], flags=re.DOTALL)
        parts[i] = re.sub(r"<th([^>]*)></th>", r"<td\1></td>", parts[i])
    return "".join(parts)


def _whole_flags(code: re.Match[str]) -> str:
    return code[1] + re.sub(r"(?<![\w-])--?\w[\w-]*", r'<span class="flag">\g<0></span>', code[2]) + code[3]


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """What a screen reader is told: the language of the page, and what the theme's search is."""
    if page.file.src_uri.endswith(".zh-CN.md"):
        output = output.replace('<html lang="en"', '<html lang="zh-CN"', 1)
    return output.replace(
        'data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"'
    )


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Each command's parser by its name, in the order of help."""
    (commands,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def command_page(name: str, parser: argparse.ArgumentParser) -> str:
    """What `anchorprune NAME --help` says."""
    said = importlib.import_module(f"anchorprune.commands.{name.replace('-', '_')}").HELP
    parts = [f"# anchorprune {name}", f"{said[0].upper()}{said[1:]}."]
    if parser.description:
        parts.append(parser.description)
    for group in parser._action_groups:
        actions = [a for a in group._group_actions if a.help is not argparse.SUPPRESS and a.dest != "help"]
        if actions:
            title = {"options": "Flags", "positional arguments": "Arguments"}.get(group.title or "", group.title or "")
            parts += [f"## {title[0].upper()}{title[1:]}", *([group.description] if group.description else [])]
            parts += [flag(parser, action) for action in actions]
    if parser.epilog:
        parts.append(f"```text\n{parser.epilog}\n```")
    return "\n\n".join(parts) + "\n"


def flag(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """One flag, with what it takes, what it does and what it is without being given."""
    formatter = parser._get_formatter()
    metavar = action.metavar or formatter._get_default_metavar_for_optional(action)
    takes = "" if action.nargs == 0 else " " + formatter._format_args(action, metavar)
    names = " or ".join(f"`{option}`" for option in action.option_strings) or f"`{action.dest}`"
    about = formatter._expand_help(action) if action.help else ""
    if action.required:
        about += " (required)"
    anchor = action.option_strings[-1].strip("-") if action.option_strings else action.dest
    heading = names
    if takes and action.option_strings:
        heading += f" `{takes.strip()}`"
    return f"{heading} {{ #{anchor} }}\n:   {escaped(about)}"


def escaped(text: str) -> str:
    """Plain text as Markdown that shows it."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(text.split()))


def public_names() -> dict[str, list[str]]:
    """The names of `anchorprune.__all__`, by the folder that they live in."""
    of_topic: dict[str, list[str]] = {topic: [] for topic in TOPICS}
    for name in anchorprune.__all__:
        if name != "__version__":
            of_topic[anchorprune._HOME[name].split(".")[1]].append(name)
    return of_topic


def python_page() -> str:
    """All public names, but the handle."""
    parts = ["# Python", "Every public name, as `import anchorprune` has it: `anchorprune.prune`, say."]
    for topic, names in public_names().items():
        parts.append(f"## {TOPICS[topic]}")
        parts += [documented(name) for name in names if name != HANDLE]
    return "\n\n".join(parts) + "\n"


def documented(name: str) -> str:
    """One name: its docstring and, where its fields say for themselves what they are, these."""
    home = anchorprune._HOME[name]
    fields = list(own_fields(name))
    text = f"::: {home}.{name}\n"
    if fields:
        text += "    options: {members: false}\n\n" + "\n".join(fields)
    return text


def own_fields(name: str) -> Iterator[str]:
    """The fields of a strategy or a task."""
    if anchorprune._HOME[name].split(".")[1] not in ("strategies", "tasks") or not name[0].isupper() or name.isupper():
        return
    cls = getattr(anchorprune, name)
    if not issubclass(cls, Fields):
        return
    fields = [field for field in dataclasses.fields(cls) if "help" in field.metadata]
    if fields:
        yield "| field | default | |\n|---|---|---|"
        for field in fields:
            default = escaped(repr(field.default))
            yield f"| `{field.name}` | {default} | {escaped(field.metadata['help'])} |"


def handle_page() -> str:
    """What `prune` returns."""
    return (
        "# The handle of a pruned model\n\n"
        "What `anchorprune.prune(model)` returns; also in a `with` block.\n\n"
        f"::: {anchorprune._HOME[HANDLE]}.{HANDLE}\n    options: {{heading_level: 2}}\n"
    )


def schema_page(schema: dict[str, Any]) -> str:
    """The keys of a result file, those of objects within below them."""
    parts = [
        "# Result files",
        schema["description"],
        "The same as [JSON Schema](result.schema.json), which is in the package, too: "
        "`anchorprune/evaluation/result.schema.json`.",
        "| key | what it is | in every result |\n|---|---|---|\n" + "\n".join(rows(schema, schema)),
    ]
    return "\n\n".join(parts) + "\n"


def rows(whole: dict[str, Any], part: dict[str, Any], within: str = "") -> Iterator[str]:
    for key, value in part.get("properties", {}).items():
        there = "yes" if key in part.get("required", ()) else ""
        if "$ref" in value:
            value = {**whole["$defs"][value["$ref"].rsplit("/", 1)[1]], **value}
        kinds = value.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        about = escaped(value.get("description", ""))
        yield f"| `{within}{key}` | {' or '.join(kinds)}{': ' if about and kinds else ''}{about} | {there} |"
        yield from rows(whole, value, f"{within}{key}.")
