"""Towers, data sources and tasks of other packages, as strategies (test_third_party.py): one entry point each."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.material import command

from anchorprune import UserError, datasets, plugins, tasks
from anchorprune.datasets.base import DataSpec, Source
from anchorprune.tasks.base import Task
from anchorprune.towers.base import Tower

PACKAGE = '''
from anchorprune.datasets.base import EvalDataset, Source
from anchorprune.tasks.base import Task
from anchorprune.towers.base import Tower

class Numbers(Source):
    """`numbers:COUNT`: what is opened are numbers."""
    name = "numbers"
    @classmethod
    def open(cls, spec, transform, task):
        count = int(spec.name.split(":")[1])
        keys = [str(i) for i in range(count)]
        return EvalDataset(spec.name, [(transform(i), 0) for i in range(count)], keys, ["a"], ["{c}"])

class Nothing(Task):
    name = "nothing"
    primary = "none"
    def prepare(self, bench): return None
    def meter(self, prepared, encode_split): raise NotImplementedError

class Shed(Tower):
    name = "shed"
    @classmethod
    def match(cls, model): return None
    def num_heads(self, block): return 1
    def query_key(self, block, x, call=None): raise NotImplementedError
    def attention_half(self, block, x, bias, call=None): raise NotImplementedError
    def mlp_half(self, block, x): raise NotImplementedError
    def replaced(self, block): return []
    def scored(self, block): return []

class Unfinished(Task):
    name = "nothing"
'''
BASES = {"anchorprune.datasets": Source, "anchorprune.tasks": Task, "anchorprune.towers": Tower}


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    for registry in (datasets.sources, tasks.registry):
        registry.cache_clear()
    yield
    sys.modules.pop("bigpackage", None)
    importlib.invalidate_caches()
    for registry in (datasets.sources, tasks.registry):
        registry.cache_clear()


def install(folder: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str, target: str) -> None:
    (folder / "bigpackage.py").write_text(PACKAGE, encoding="utf-8")
    info = folder / "bigpackage-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bigpackage\nVersion: 1\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = bigpackage:{target}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize(
    ("group", "name", "target"),
    [
        ("anchorprune.datasets", "numbers", "Numbers"),
        ("anchorprune.tasks", "nothing", "Nothing"),
        ("anchorprune.towers", "shed", "Shed"),
    ],
)
def test_what_a_package_brings_is_found_after_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, name: str, target: str
) -> None:
    before = plugins.found(BASES[group], group)
    install(tmp_path, monkeypatch, group, name, target)
    found = plugins.found(BASES[group], group)
    assert [*found] == [*before, name]
    assert found[name].__module__ == "bigpackage"


def test_a_data_set_of_a_packages_source_is_opened_by_its_prefix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch, "anchorprune.datasets", "numbers", "Numbers")
    dataset = datasets.open_dataset(DataSpec(name="numbers:3"), lambda i: 10 * i)
    assert [dataset.items[i] for i in range(3)] == [(0, 0), (10, 0), (20, 0)]
    with pytest.raises(UserError, match="dataset='nombers:3'"):
        datasets.open_dataset(DataSpec(name="nombers:3"), str)


@pytest.mark.parametrize(
    ("name", "target", "says"),
    [
        ("nothing", "Missing", "cannot be loaded"),
        ("nothing", "Unfinished", "is no complete subclass of Task"),
        ("nothing", "Numbers", "is no complete subclass of Task"),
        ("other", "Nothing", "its name 'nothing' is taken or another"),
    ],
)
def test_a_broken_one_is_one_line_that_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, target: str, says: str
) -> None:
    install(tmp_path, monkeypatch, "anchorprune.tasks", name, target)
    with pytest.raises(UserError, match=f"^task '{name}' of the package bigpackage .*{says}"):
        tasks.registry()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("import sys; sys.exit(0)", "cannot be loaded: 0"),
        ("import sys; sys.exit()", "cannot be loaded: SystemExit"),
        ("raise ValueError('two\\nlines')", "cannot be loaded: two lines"),
        ("class Own(BaseException): pass\nraise Own", "cannot be loaded: Own"),
        ("import nowhere.at.all", "cannot be loaded: No module named 'nowhere'"),
        ("this is no Python", "cannot be loaded: invalid syntax"),
        ("def f(): f()\nf()", "cannot be loaded: maximum recursion depth"),
    ],
)
def test_one_that_ends_or_fails_at_its_import_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, says: str
) -> None:
    install(tmp_path, monkeypatch, "anchorprune.tasks", "nothing", "Nothing")
    (tmp_path / "bigpackage.py").write_text(body, encoding="utf-8")
    outcome = command("eval", "--help")
    assert (outcome.code, outcome.out, len(outcome.err)) == (2, [], 1)
    assert f"task 'nothing' of the package bigpackage (bigpackage:Nothing) {says}" in outcome.err[0]
