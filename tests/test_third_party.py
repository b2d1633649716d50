"""A strategy of another package is one entry point; a broken one is one line."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from support.models import TOKENS, make_visual

import anchorprune
from anchorprune import UserError
from anchorprune.strategies import make_strategy, registry

PACKAGE = Path(__file__).parent / "third_party"
OURS = list(registry())

# A complete strategy, for packages that are broken in some other way.
STRATEGY = """
from dataclasses import dataclass
from anchorprune.strategies.base import Strategy, option

@dataclass(frozen=True)
class Theirs(Strategy):
    '''Theirs.'''
    name = {name!r}
    their_field: int = option(1, "a field")
    def schedule(self, num_patches, num_blocks): return {{2: 1}}
    def budgets(self, num_patches, num_blocks): return [self]
    def plan(self, tokens, keep_patches): raise NotImplementedError
"""


@pytest.fixture(autouse=True)
def _fresh_registry() -> Iterator[None]:
    """What a test puts on the path is seen in it, and in no other test."""
    modules = set(sys.modules)
    registry.cache_clear()
    yield
    for module in set(sys.modules) - modules:
        if module.split(".")[0] in ("everyother", "theirs"):
            del sys.modules[module]
    importlib.invalidate_caches()
    registry.cache_clear()


@pytest.fixture
def every_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(PACKAGE)


Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package `theirs` with this code on the path, which says that it has the strategy `name`."""

    def _install(code: str, name: str = "theirs", target: str = "theirs:Theirs") -> Path:
        (tmp_path / "theirs.py").write_text(code, encoding="utf-8")
        info = tmp_path / "theirs-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1\n", encoding="utf-8")
        (info / "entry_points.txt").write_text(f"[anchorprune.strategies]\n{name} = {target}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        return tmp_path

    return _install


def command(*args: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(path), os.environ.get("PYTHONPATH", "")])}
    return subprocess.run(
        [sys.executable, "-m", "anchorprune", *args], env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.usefixtures("every_other")
def test_it_is_there_beside_ours() -> None:
    assert list(registry()) == [*OURS, "every_other"]


@pytest.mark.usefixtures("every_other")
@torch.no_grad()
def test_it_prunes_like_ours(images: torch.Tensor) -> None:
    visual = make_visual()
    dense = visual(images)
    with anchorprune.prune(visual, "every_other") as pruning:
        visual(images)
    assert pruning.kept.tolist() == [[0, *range(1, TOKENS, 2)]] * len(images)
    with anchorprune.prune(visual, "every_other", stride_of_kept=8, prune_layer=3) as pruning:
        visual(images)
    assert pruning.kept.tolist() == [[0, 1, 9]] * len(images)
    assert torch.equal(visual(images), dense)


@pytest.mark.usefixtures("every_other")
def test_its_fields_are_checked_and_recorded_like_ours() -> None:
    as_dict = {"strategy": "every_other", "prune_layer": 2, "stride_of_kept": 3}
    assert make_strategy("every_other", stride_of_kept=3).as_dict() == as_dict
    with pytest.raises(UserError, match="stride_of_kept='3': must be a whole number"):
        make_strategy("every_other", stride_of_kept="3")
    with pytest.raises(UserError, match="top_m=3: strategy 'every_other' has no such field"):
        make_strategy("every_other", top_m=3)


def test_the_command_line_lists_it_with_its_field() -> None:
    shown = command("eval", "--help", path=PACKAGE)
    assert shown.returncode == 0, shown.stderr
    assert "every_other" in shown.stdout
    assert "--stride_of_kept" in shown.stdout
    assert "one of so many patches is kept" in " ".join(shown.stdout.split())


def test_without_its_package_it_is_unknown() -> None:
    assert list(registry()) == OURS
    with pytest.raises(UserError, match="unknown strategy 'every_other': choose one of anchor"):
        make_strategy("every_other")


def test_a_strategy_without_an_entry_point_is_not_listed(install: Install) -> None:
    path = install(STRATEGY.format(name="theirs"))
    (path / "theirs-1.dist-info" / "entry_points.txt").unlink()
    assert importlib.import_module("theirs").Theirs.name == "theirs"
    assert list(registry()) == OURS


BROKEN = {
    "cannot be imported": ({"code": "import a_module_that_nobody_has"}, "No module named 'a_module_that_nobody_has'"),
    "is not there": ({"code": ""}, "cannot be loaded: module 'theirs' has no attribute 'Theirs'"),
    "is no module": ({"code": "", "target": "their_misspelt_module:Theirs"}, "No module named 'their_misspelt_module'"),
    "fails in several lines": ({"code": "raise ValueError('first line\\nsecond line')"}, "first line"),
    "is no Python": ({"code": "def"}, "cannot be loaded: invalid syntax|cannot be loaded: expected"),
    "is no class": ({"code": "Theirs = 5"}, "is no complete subclass of Strategy"),
    "is no strategy": ({"code": "class Theirs: name = 'theirs'"}, "is no complete subclass of Strategy"),
    "has no plan": (
        {"code": "from anchorprune.strategies.base import Strategy\nclass Theirs(Strategy): name = 'theirs'"},
        "is no complete subclass of Strategy",
    ),
    "has a name of ours": ({"code": STRATEGY.format(name="tome"), "name": "tome"}, "its name 'tome' is taken"),
    "has another name": ({"code": STRATEGY.format(name="another")}, "its name 'another' is taken or another"),
    "has no name": ({"code": STRATEGY.replace("    name = {name!r}\n", "").format()}, "name"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_strategy_that_is_broken_is_named_in_one_line(how: str, install: Install) -> None:
    package, says = BROKEN[how]
    install(**package)
    with pytest.raises(UserError, match=says) as error:
        registry()
    assert str(error.value).startswith(f"strategy {package.get('name', 'theirs')!r} of the package theirs (")
    assert "\n" not in str(error.value)


def test_the_command_line_prints_that_line_and_exits_with_2(install: Install) -> None:
    path = install("import a_module_that_nobody_has")
    failed = command("eval", "--help", path=path)
    assert failed.returncode == 2, failed.stderr
    (line,) = failed.stderr.splitlines()
    assert "strategy 'theirs' of the package theirs (theirs:Theirs) cannot be loaded: No module named" in line


def test_a_field_that_is_called_like_a_flag_of_eval_is_one_line_too(install: Install) -> None:
    path = install(STRATEGY.format(name="theirs").replace("their_field", "batch_size"))
    failed = command("eval", "--help", path=path)
    assert failed.returncode == 2, failed.stderr
    (line,) = failed.stderr.splitlines()
    assert "theirs" in line
    assert "batch_size" in line


def test_a_block_that_a_tower_does_not_have_is_an_error_whatever_the_field_is_called(install: Install) -> None:
    install(STRATEGY.format(name="theirs").replace("{2: 1}", "{9: 1}"))
    with pytest.raises(UserError, match=r"this tower has blocks 1 … 4"):
        anchorprune.prune(make_visual(), "theirs")
