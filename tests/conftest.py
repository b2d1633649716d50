"""What every test finds: small models with random weights, an offline hub, an empty cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test never reaches for a hub
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="anchorprune-tests-")  # nor for what somebody computed before

import open_clip
import pytest
import torch
from open_clip.transformer import VisionTransformer
from support.models import IMAGE_SIZE, make_clip, make_visual
from support.shapes import check_shapes

torch.set_num_threads(1)  # small models gain nothing from a second, and wait for it where the processors are busy
CHECKED = check_shapes("anchorprune.towers", "anchorprune.pruning")


@pytest.fixture
def visual() -> VisionTransformer:
    return make_visual()


@pytest.fixture
def clip() -> open_clip.CLIP:
    return make_clip()


@pytest.fixture
def images() -> torch.Tensor:
    """`[6, 3, 32, 32]`"""
    return torch.randn(6, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The tiny models and data sets of `support/material.py`, anew for each file."""
    from support.material import make_world

    with pytest.MonkeyPatch.context() as patch:
        yield make_world(tmp_path_factory.mktemp("world"), patch)


@pytest.fixture
def few_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tune` advises on a handful of images, for tests of everything else; test_tune.py has what it takes."""
    monkeypatch.setattr("anchorprune.studies.tune.MINIMUM", 1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
