"""docs/extending.md: the package that it writes is installed, and its command runs."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.material import command, read

from anchorprune import DataSpec, datasets, strategies, tasks

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "extending.md").read_text(encoding="utf-8")
MODULE = "\n\n".join(re.findall(r"```python myextras.py\n(.*?)```", PAGE, re.DOTALL))
ENTRIES = re.findall(r'\[project\.entry-points\."([\w.]+)"\]\n(\w+) = "(\w+:\w+)"', PAGE)
REGISTRIES = (strategies.registry, tasks.registry, datasets.sources)


@pytest.fixture(autouse=True)
def package(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As pip leaves it: the module, and what it says of itself."""
    (here / "myextras.py").write_text(MODULE, encoding="utf-8")
    info = here / "myextras-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: myextras\nVersion: 1\n", encoding="utf-8")
    text = "".join(f"[{group}]\n{name} = {target.replace('=', ':')}\n" for group, name, target in ENTRIES)
    (info / "entry_points.txt").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(here)
    for registry in REGISTRIES:
        registry.cache_clear()
    yield
    sys.modules.pop("myextras", None)
    importlib.invalidate_caches()
    for registry in REGISTRIES:
        registry.cache_clear()


def test_its_command_runs_with_all_that_it_adds() -> None:
    (line,) = re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    words = shlex.split(line.replace("\\\n", " "))[1:]
    outcome = command(*words, "--num_workers", 0, "--power", 1.0)
    assert outcome.code == 0, outcome.err
    result = read("squares.json")
    assert (result["dataset"], result["task"], result["n_samples"]) == ("squares:12", "spread", 12)
    assert 0 < result["metrics"]["spread"] < 1
    assert result["pruning"]["power"] == 1.0
    assert result["pruning"]["measured"]["tokens_after"] == 67


def test_its_strategy_keeps_the_longest_tokens() -> None:
    from anchorprune.tokens import Tokens

    x = torch.randn(2, 10, 4, generator=torch.Generator().manual_seed(0))
    strategy = strategies.make_strategy("longest", keep_patches=3)
    tokens = Tokens(x, 1, query_key=lambda: pytest.fail("it asks for queries and keys"))
    kept = strategy.plan(tokens, 3).keep
    for image, own in zip(x, kept, strict=True):
        lengths = {i: sum(float(v) ** 2 for v in image[i]) for i in range(1, 10)}
        assert own.tolist() == [0, *sorted(sorted(lengths, key=lengths.__getitem__)[-3:])]


def test_its_squares_are_told_apart_by_their_colours() -> None:
    opened = datasets.open_dataset(DataSpec(name="squares:4"), lambda image: image.getpixel((0, 0)))
    assert [opened.items[i] for i in range(4)] == [
        ((255, 0, 0), 0),
        ((0, 255, 0), 1),
        ((0, 0, 255), 2),
        ((255, 0, 0), 0),
    ]
