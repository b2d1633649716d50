"""Words for everybody: flags that do something, sentences of Python in Python, pages for those who cannot see them."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import timm
import torch
from support.material import PRUNED, World, command
from support.pages import elements
from test_report import a_page
from test_sweep_page import a_large_sweep
from test_sweep_page import a_page as a_sweep_page

import anchorprune
from anchorprune import tasks
from anchorprune.commands import build_parser, commands
from anchorprune.embeddings.request import EncodeRequest
from anchorprune.fields import Fields
from anchorprune.report import page, tune_page
from anchorprune.strategies import known as strategies

PACKAGE = Path(anchorprune.__file__).parent


# --- no flag without effect


def functions() -> dict[str, dict[str, ast.FunctionDef]]:
    """The functions of each file of `commands/`, by name."""
    trees = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in (PACKAGE / "commands").glob("*.py")}
    return {
        file: {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
        for file, tree in trees.items()
    }


def reached(file: str) -> dict[str, ast.FunctionDef]:
    """What a command's `run` calls of its own file and of those that serve commands, and what these call."""
    found: dict[str, ast.FunctionDef] = {}
    todo = [functions()[file]["run"]]
    known = {name: node for other, own in functions().items() if other.startswith("_") for name, node in own.items()}
    known |= functions()[file]
    while todo:
        node = todo.pop()
        found[node.name] = node
        words = {
            n.id if isinstance(n, ast.Name) else n.attr
            for n in ast.walk(node)
            if isinstance(n, (ast.Name, ast.Attribute))
        }
        todo += [known[word] for word in words & known.keys() - found.keys()]
    return found


def read_by(file: str) -> set[str]:
    """What a command reads of what was parsed: `args.name`, names in strings, and the fields that are flags."""
    nodes = reached(file)
    read = set()
    for node in (each for function in nodes.values() for each in ast.walk(function)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "args":
            read.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            read.add(node.value)
    classes: list[type[Fields] | type[EncodeRequest]] = [EncodeRequest] if file == "encode" else []
    classes += strategies().values() if "given_fields" in nodes else []
    classes += tasks.registry().values() if "_task" in nodes else []
    return read | {field.name for each in classes for field in dataclasses.fields(each)}


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    (sub,) = (action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction))
    yield from sub.choices.items()


@pytest.mark.parametrize("name", commands())
def test_every_flag_in_help_is_read(name: str) -> None:
    flags = {action.dest for action in dict(parsers())[name]._actions} - {"help"}
    assert flags - read_by(name.replace("-", "_")) == set()


def test_a_flag_that_nobody_reads_is_found() -> None:
    assert "recall_k" not in read_by("speed")
    assert "batch_sizes" in read_by("speed")


# --- Python in Python


def said_in_python() -> Iterator[tuple[str, str]]:
    """Each string in an exception or warning of the library, where it is; without those for the command line."""
    for file in PACKAGE.rglob("*.py"):
        if {"commands", "scale"} & set(file.relative_to(PACKAGE).parts):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("FieldError", "UserError", "warnings.warn"):
                for word in ast.walk(ast.Module([ast.Expr(each) for each in node.args], [])):
                    if isinstance(word, ast.Constant) and isinstance(word.value, str):
                        yield f"{file.name}:{word.lineno}", word.value


def test_errors_and_warnings_of_the_library_name_no_flags() -> None:
    told = list(said_in_python())
    assert len(told) > 200
    warned = [(where, text) for where, text in told if re.search(r"(^|\s)--[a-z]", text)]
    # These stand in a FieldWarning, whose second sentence is the command line's.
    assert [
        (where, text) for where, text in warned if not where.startswith(("engine.py", "linear_probe.py", "workers.py"))
    ] == []


# --- quiet


def test_pruning_alone_is_the_described_method_and_one_line_names_the_recommended(world: World, here: Path) -> None:
    flags = [*world.model, *world.three, "--num_workers", 0, "--enable_pruning", "--output", "r.json"]
    told = "anchorprune: --enable_pruning alone is the described method (--strategy anchor); "
    first, *effect = command("eval", *flags).err
    assert first == f"{told}the recommended one is --strategy {anchorprune.RECOMMENDED}"
    assert command("eval", *flags, "--quiet").err == effect  # that of so few patches none is dropped


@pytest.mark.parametrize("more", [PRUNED, [*PRUNED, "--strategy", "anchor"], []], ids=["fields", "named", "none"])
def test_who_says_which_pruning_or_none_is_told_nothing(world: World, here: Path, more: list[str]) -> None:
    flags = [*world.model, *world.three, "--num_workers", 0, "--output", "r.json"]
    assert command("eval", *flags, *more).err == []


@pytest.mark.parametrize("words", ["eval", "sweep --strategies tome", "tune --max_drop 5"])
def test_a_setting_of_another_task_has_no_effect(world: World, here: Path, words: str) -> None:
    flags = [*world.model, *world.three, "--num_workers", 0, "--view_seed", 3]
    said = "with --task zeroshot_classification, --view_seed has no effect"
    assert command(*words.split(), *flags).err[0] == f"anchorprune: warning: {said}"


def test_one_idle_flag_has_no_effect(world: World, here: Path) -> None:
    flags = [*world.model, *world.three, "--num_workers", 0, "--output", "r.json", "--strategy", "coarse"]
    assert command("eval", *flags).err == ["anchorprune: warning: without --enable_pruning, --strategy has no effect"]


def test_quiet_is_quiet_of_timm_too(world: World, here: Path) -> None:
    torch.save(timm.create_model("test_vit").state_dict(), "w.pth")
    flags = ["--model_type", "timm", "--model", "test_vit", "--pretrained", "w.pth", *world.things]
    flags += ["--task", "fidelity", "--quiet", "--num_workers", 0, "--output", "r.json"]
    outcome = command("eval", *flags, "--enable_pruning", "--strategy", "random", "--keep_ratio", 0.5)
    assert (outcome.code, outcome.out, outcome.err) == (0, [], [])


# --- pages for those who cannot see them


def a_tune_page() -> str:
    row = {"strategy": "tome", "flags": "--r 8", "drop": 0.5, "speed_up": 1.5, "milliseconds": None, "chosen": True}
    rows = [row | {"images_per_second": None, "gmacs": 4.0}]
    return tune_page.render(rows, title="t", headline="h", text="t", found=None, facts={}, command="")


PAGES = {
    "page.html": lambda: page.render(a_page()),
    "sweep.html": lambda: a_sweep_page(a_large_sweep()[:5]),
    "tune.html": a_tune_page,
}


def test_every_template_of_a_page_is_looked_at() -> None:
    files = (PACKAGE / "report" / "templates").glob("*.html")
    assert {file.name for file in files if "extends" in file.read_text(encoding="utf-8")} == PAGES.keys()


@pytest.mark.parametrize("name", PAGES)
def test_every_chart_picture_and_table_says_what_it_is(name: str) -> None:
    text = PAGES[name]()
    found = elements(text).found
    texts = dict(re.findall(r'<(?:title|desc) id="([^"]+)">([^<]+)<', text))
    for tag, attributes in found:
        if tag == "svg":
            assert attributes.get("role") == "img"
            assert all(texts[ident].strip() for ident in (attributes.get("aria-labelledby") or "").split())
        elif tag == "img":
            assert "alt" in attributes
        elif tag == "th":
            assert attributes.get("scope") in ("col", "row")
    tables = re.findall(r"<table[^>]*>\s*<caption>[^<]+</caption>", text)
    assert len(tables) == sum(tag == "table" for tag, _ in found) > 0
    assert ("html", {"lang": "en"}) in found
