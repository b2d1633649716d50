"""What the tests of the command line run on is what it says."""

from __future__ import annotations

from pathlib import Path

import open_clip
import pytest
from support.material import CIFAR10, TINY_HEADS, TINY_LAYERS, TINY_TOKENS, make_cifar10, register


def test_the_tiny_model_has_17_tokens_in_4_blocks(tmp_path: Path) -> None:
    visual = open_clip.create_model(register(tmp_path)).visual
    assert visual.positional_embedding.shape[0] == TINY_TOKENS
    assert len(visual.transformer.resblocks) == TINY_LAYERS
    assert visual.transformer.resblocks[0].attn.num_heads == TINY_HEADS


def test_the_tiny_cifar10_holds_every_class_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import CIFAR10 as Cifar10

    data = Cifar10(str(make_cifar10(tmp_path, monkeypatch)), train=False)
    assert data.classes == CIFAR10
    assert sorted(data.targets) == sorted([*range(10)] * 2)
