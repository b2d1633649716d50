"""CONTRIBUTING.md's walk-through of a new tower, done to the letter."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import test_libraries as conformance
import torch
import torchvision
from support.libraries import LIBRARIES, lively
from torch import Tensor

import anchorprune
from anchorprune import towers
from anchorprune.strategies import standalone

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## A new tower, step by step")[1]
FILE, MODEL = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


@pytest.fixture(autouse=True)
def tower_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Step 2 and 3: the file is in the folder, the model in the list."""
    (tmp_path / "torchvision.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(towers, "__path__", [*towers.__path__, str(tmp_path)])
    monkeypatch.setitem(LIBRARIES, "torchvision", lambda: lively(eval(MODEL, {"torchvision": torchvision})))
    torch.manual_seed(0)
    yield
    sys.modules.pop("anchorprune.towers.torchvision", None)


def test_without_the_file_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(towers, "__path__", towers.__path__[:-1])
    with pytest.raises(anchorprune.UserError, match="no image tower that anchorprune knows"):
        anchorprune.prune(LIBRARIES["torchvision"](), "random", keep_patches=3)


def test_the_halves_are_the_block(images: Tensor) -> None:
    conformance.test_the_two_halves_of_a_block_are_the_block("torchvision", images)


@pytest.mark.parametrize("strategy", sorted(set(standalone()) - {"coarse", "vwt_intra"}))
def test_every_strategy_prunes_it(strategy: str, images: Tensor) -> None:
    conformance.test_every_strategy_prunes_every_tower("torchvision", strategy, images)
    conformance.test_images_are_pruned_each_on_its_own("torchvision", strategy, images)


def test_a_tower_without_a_stem_is_not_given_smaller_images(images: Tensor) -> None:
    model = LIBRARIES["torchvision"]()
    dense = model(images)
    with pytest.raises(anchorprune.UserError, match="VisionTransformer sees images of one size alone"):
        anchorprune.prune(model, "coarse", keep_patches=6)
    with pytest.raises(anchorprune.UserError, match="pixels of patches, which VisionTransformer does not show"):
        anchorprune.prune(model, "vwt_intra", keep_patches=6)
    assert torch.equal(model(images), dense)
    assert anchorprune.prune(model, "coarse", keep_patches=6, grid_share=0).effective  # the grid stays


def test_what_is_dropped_is_as_if_it_were_masked(images: Tensor) -> None:
    conformance.test_dropping_patches_is_running_without_them("torchvision", images)


def test_the_files_that_it_names_are_there() -> None:
    named: list[Any] = re.findall(r"`((?:src|tests|docs|towers)/[\w/.]+)`", TEXT)
    assert named
    for name in named:
        path = ROOT / ("src/anchorprune/" + name if name.startswith("towers/") else name)
        assert path.exists() or name == "src/anchorprune/towers/torchvision.py"
