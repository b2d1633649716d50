"""Small open_clip models with random weights; every test builds on these."""

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

torch.set_num_threads(2)

IMAGE_SIZE, PATCH, WIDTH, LAYERS, HEADS, EMBED = 32, 8, 32, 4, 4, 16
TOKENS = 1 + (IMAGE_SIZE // PATCH) ** 2  # 17


def make_visual(**options: object) -> VisionTransformer:
    """A tower of 17 tokens and 4 blocks, seeded, in evaluation mode."""
    torch.manual_seed(0)
    settings = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH,
        "width": WIDTH,
        "layers": LAYERS,
        "heads": HEADS,
        "mlp_ratio": 2.0,
        "output_dim": EMBED,
    }
    visual = VisionTransformer(**(settings | options))
    for parameter in visual.parameters():  # larger than the default, so that attention is not flat
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return visual.eval()


def make_clip() -> open_clip.CLIP:
    """A whole CLIP around `make_visual`'s tower, with a text tower and open_clip's own vocabulary."""
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=EMBED,
        vision_cfg={
            "image_size": IMAGE_SIZE,
            "patch_size": PATCH,
            "width": WIDTH,
            "layers": LAYERS,
            "head_width": WIDTH // HEADS,
            "mlp_ratio": 2.0,
        },
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
    )
    return model.eval()


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
    """The tiny models and data sets of `test_cli_material`, anew for each file."""
    from test_cli_material import make_world

    with pytest.MonkeyPatch.context() as patch:
        yield make_world(tmp_path_factory.mktemp("world"), patch)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
