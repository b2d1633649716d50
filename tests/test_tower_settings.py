"""Towers as people run them: other image sizes, hybrid stems, tokens as output, in training, compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from support.libraries import LIBRARIES, hf_vision, in_open_clip, lively, timm_eva, timm_vit
from support.material import checkpoint, register
from support.models import HEADS, IMAGE_SIZE, LAYERS, make_clip, make_visual
from support.strategies import SMALL
from torch import Tensor

import anchorprune
from anchorprune.towers import find_tower

some_strategies = pytest.mark.parametrize("strategy", ["anchor", "thin", "tome"])


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def noise(*size: int) -> Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


# Image sizes.


@pytest.mark.parametrize("size", [48, (48, 32)])
@torch.no_grad()
def test_force_image_size_makes_a_tower_of_another_grid(size: Any, tmp_path: Path) -> None:
    """With the positions of the checkpoint interpolated."""
    weights = checkpoint(tmp_path / "tiny.pt", register(tmp_path, "cli-sizes"))
    model = open_clip.create_model("cli-sizes", pretrained=str(weights), force_image_size=size).eval()
    height, width = size if isinstance(size, tuple) else (size, size)
    with anchorprune.prune(model, "anchor", k_anchors=2, top_m=4) as pruning:
        model.encode_image(noise(height, width))
    assert find_tower(model).grid == (height // 8, width // 8)
    assert (pruning.tokens_before, pruning.tokens_after) == (1 + height // 8 * width // 8, 7)


@torch.no_grad()
def test_positions_interpolated_at_the_call_leave_more_tokens_to_prune() -> None:
    model = hf_vision()
    with anchorprune.prune(model, "thin", keep_patches=4) as pruning:
        model(noise(48, 48), interpolate_pos_encoding=True)
    assert pruning.tokens_by_block == [37, 5, 5, 5]


@pytest.mark.parametrize("make", [timm_vit, timm_eva])
@torch.no_grad()
def test_set_input_size_of_timm_makes_a_tower_of_another_grid(make: Callable[[], Any]) -> None:
    model = make()
    model.set_input_size(48)
    with anchorprune.prune(model, "thin", keep_patches=4) as pruning:
        model(noise(48, 48))
    assert find_tower(model).grid == (6, 6)
    assert pruning.tokens_by_block == [37, 5, 5, 5]


# Convolutions before the blocks.


@pytest.mark.parametrize(
    ("name", "width"),
    [("vit_base_mci_224", 768), ("vitamin_small_224", 384)],
    ids=["MobileCLIP-B", "ViTamin-S"],
)
@some_strategies
@torch.no_grad()
def test_a_convolutional_stem_hands_on_one_flat_sequence(name: str, width: int, strategy: str) -> None:
    model = lively(timm.create_model(name, img_size=64, depth=LAYERS, num_heads=HEADS, num_classes=16))
    tower, calls, images = find_tower(model), [], noise(64, 64)
    assert (tower.grid, tower.num_heads(tower.blocks[0])) == ((4, 4), HEADS)
    hook = tower.blocks[1].register_forward_hook(lambda *call: calls.append(call))
    dense = model(images)
    hook.remove()
    ((block, (x, *_), output),) = calls
    assert x.shape == (2, tower.num_tokens, width)
    between, *_ = tower.attention_half(block, x, None)
    torch.testing.assert_close(tower.mlp_half(block, between), output, rtol=1e-4, atol=1e-4)
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        assert not torch.allclose(model(images), dense)
    assert pruning.effective
    assert torch.equal(model(images), dense)


# Tokens as output.


@some_strategies
@torch.no_grad()
def test_the_tokens_that_open_clip_returns_are_the_kept_ones(strategy: str, images: Tensor) -> None:
    visual = make_visual(output_tokens=True)
    with anchorprune.prune(visual, strategy, **SMALL[strategy]) as pruning:
        pooled, tokens = visual(images)
    assert pooled.shape == (len(images), 16)
    assert tokens.shape[1] == pruning.tokens_after - 1  # without CLS


# Training.

DROPPING = {
    "timm ViT": lambda: timm_vit(patch_drop_rate=0.5),
    "timm Eva, rotary": lambda: timm_eva(patch_drop_rate=0.5),
    "timm Eva, a rotation for each head and block": lambda: timm_eva(patch_drop_rate=0.5, rope_type="mixed"),
}


@pytest.mark.parametrize("tower", DROPPING)
@some_strategies
def test_patch_dropout_of_timm_leaves_fewer_tokens_to_prune(tower: str, strategy: str, images: Tensor) -> None:
    model = DROPPING[tower]().train()
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        model(images).square().sum().backward()
    assert pruning.tokens_before == 9  # CLS and half of 16
    assert pruning.tokens_after < 9


CHECKPOINTED = {
    "open_clip": make_visual,
    "open_clip, whole": make_clip,
    "timm in open_clip": in_open_clip("vit_base_patch16_224", img_size=IMAGE_SIZE),
}


@pytest.mark.parametrize("tower", CHECKPOINTED)
@some_strategies
def test_gradients_are_the_same_under_open_clips_checkpointing(tower: str, strategy: str, images: Tensor) -> None:
    gradients, original = [], CHECKPOINTED[tower]().train()
    for checkpointing in (False, True):
        model = copy.deepcopy(original)
        model.set_grad_checkpointing(checkpointing)
        with anchorprune.prune(model, strategy, **SMALL[strategy]):
            getattr(model, "encode_image", model)(images).square().sum().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4)


# Compiled.


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("strategy", ["anchor", "thin"])  # at a block's input, and inside it
@torch.no_grad()
def test_a_pruned_tower_of_every_library_compiles_into_one_graph(library: str, strategy: str, images: Tensor) -> None:
    """The eager backend makes no code: what is tested is what gets traced."""
    model = LIBRARIES[library]()
    tower = find_tower(model).module
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        expected, kept = tower(images), pruning.kept
        found = torch.compile(tower, backend="eager", fullgraph=True)(images)
    if not isinstance(expected, Tensor):
        found, expected = found.pooler_output, expected.pooler_output
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(pruning.kept, kept)
