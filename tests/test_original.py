"""What the description's original code did can be had again: its choice of tokens, its arguments, its attention file.

Its code scored the block's input without the block's first LayerNorm, and the first image of a batch chose for all.
"""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from support import naive
from support.libraries import LIBRARIES, encode
from support.models import LAYERS, TOKENS, make_visual
from test_strategies_in_towers import tokens_first
from torch import Tensor, nn

import anchorprune
from anchorprune import UserError, bundled
from anchorprune.strategies import make_strategy
from anchorprune.tokens import Tokens
from anchorprune.towers import find_tower
from anchorprune.towers.base import Tower
from anchorprune.towers.open_clip import OpenClipTower

ORIGINAL = {"selection": "first_image", "score_input": "raw"}
# Of the bundled model and `picture()`, by `described`: 61 of 197 tokens.
# fmt: off
GOLDEN = [
    0, 1, 10, 11, 12, 14, 24, 25, 26, 27, 29, 30, 39, 40, 41, 42, 43, 53, 54, 55, 56, 69, 70, 98, 107, 112, 125,
    126, 140, 141, 145, 146, 155, 156, 157, 166, 167, 168, 169, 170, 171, 172, 176, 177, 178, 179, 180, 181, 182,
    184, 185, 186, 187, 188, 189, 190, 192, 193, 194, 195, 196,
]
# fmt: on


def picture(size: int = 112) -> Tensor:
    """`[1, 3, size, size]`, smooth, by arithmetic alone."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, size), torch.linspace(-1, 1, size), indexing="ij")
    return torch.stack([(3 * x + y * y).sin(), (5 * x * y).cos(), (x - 2 * y).sin() * (4 * y).cos()]).unsqueeze(0)


def entering_block_2(tower: Tower, images: Tensor, model: Any = None) -> tuple[Tensor, dict[str, Any]]:
    """x `[B, N, D]` as it enters block 2 of the unpruned tower, and the keywords that the block is called with."""
    seen: list[Any] = []
    hook = tower.blocks[1].register_forward_pre_hook(
        lambda block, args, call: seen.extend((args[0], call)), with_kwargs=True
    )
    encode(model or tower.module, images)
    hook.remove()
    return tower.tokens(seen[0]), seen[1]


def projected(block: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """x W_Q and x W_K of one image `[N, D]`, by head `[H, N, d]`, in float64, with nothing before them."""
    weight, bias, heads = block.attn.in_proj_weight.double(), block.attn.in_proj_bias.double(), block.attn.num_heads
    width = x.shape[1]
    q, k = (x.double() @ weight[at : at + width].T + bias[at : at + width] for at in (0, width))
    return tuple(y.unflatten(1, (heads, -1)).transpose(0, 1) for y in (q, k))


def described(block: Any, x: Tensor, k_anchors: int, top_m: int, alpha: float) -> tuple[list[int], float]:
    """The four steps of the description for one image `[N, D]`, and by how much the last one chosen leads the next."""
    q, k = projected(block, x)
    attention = torch.stack([(q[h] @ k[h].T / q.shape[2] ** 0.5).softmax(dim=1) for h in range(len(q))]).mean(dim=0)
    anchors = [1 + int(i) for i in attention[0, 1:].argsort(descending=True)[:k_anchors]]
    unit = x.double() / x.double().norm(dim=1, keepdim=True)
    score = {}
    for i in set(range(1, len(x))) - set(anchors):
        importance = sum(float(attention[i, j]) for j in anchors) / k_anchors
        diversity = 1 - max(float(unit[i] @ unit[j]) for j in anchors)
        score[i] = alpha * importance + (1 - alpha) * diversity
    ranked = sorted(score, key=lambda i: -score[i])
    lead = score[ranked[top_m - 1]] - score[ranked[top_m]]
    return sorted([0, *anchors, *ranked[:top_m]]), lead


@pytest.mark.parametrize("layout", ["batch first", "tokens first"])
@torch.no_grad()
def test_raw_scores_and_the_first_images_choice_keep_what_a_naive_loop_over_the_original_keeps(
    layout: str, images: Tensor
) -> None:
    visual = make_visual() if layout == "batch first" else tokens_first(make_visual())
    for norm in (block.ln_1 for block in visual.transformer.resblocks):  # as after training
        norm.weight.copy_(torch.linspace(-1, 2, len(norm.weight)))
    tower = find_tower(visual)
    x, _ = entering_block_2(tower, images)
    for k_anchors, top_m, alpha in [(1, 3, 0.5), (3, 5, 1.0), (2, 9, 0.0)]:
        q, k = projected(tower.blocks[1], x[0])
        expected = naive.select(x[0], q, k, k_anchors, top_m, alpha, 1, "none", "to_anchors")
        fields = {"k_anchors": k_anchors, "top_m": top_m, "alpha": alpha}
        with anchorprune.apply_pruning_to_model(visual, **fields, **ORIGINAL) as pruning:
            visual(images)
        assert pruning.kept.tolist() == [expected] * len(images)
    with anchorprune.apply_pruning_to_model(
        visual, k_anchors=3, top_m=5, alpha=1.0, selection="first_image"
    ) as pruning:
        visual(images)
    q, k = projected(tower.blocks[1], x[0])
    assert pruning.kept[0].tolist() != naive.select(x[0], q, k, 3, 5, 1.0, 1, "none", "to_anchors")


@torch.no_grad()
def test_on_the_bundled_model_61_tokens_are_the_golden_ones() -> None:
    bundled.register()
    model = open_clip.create_model(bundled.MODEL).eval()
    bundled.load_weights(model)
    tower = find_tower(model)
    x, _ = entering_block_2(tower, picture())
    expected, lead = described(tower.blocks[1], x[0], 10, 50, 0.5)
    assert lead > 1e-5  # far from what rounding could turn round
    assert expected == GOLDEN
    with anchorprune.apply_pruning_to_model(model, **ORIGINAL) as pruning:
        model.encode_image(torch.cat([picture(), picture().flip(3)]))
    assert pruning.kept.tolist() == [GOLDEN] * 2
    with anchorprune.apply_pruning_to_model(model, selection="first_image") as pruning:
        model.encode_image(picture())
    assert pruning.kept[0].tolist() != GOLDEN


@pytest.mark.parametrize("library", LIBRARIES)
@torch.no_grad()
def test_raw_is_what_the_block_would_project_without_its_first_norm(library: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    tower = find_tower(model)
    x, call = entering_block_2(tower, images, model)
    without = copy.deepcopy(tower.blocks[1])
    name = next(name for name in ("ln_1", "layer_norm1", "layernorm_before", "norm1") if hasattr(without, name))
    setattr(without, name, nn.Identity())
    torch.testing.assert_close(tower.raw_query_key(tower.blocks[1], x, call), tower.query_key(without, x, call))
    if type(without).__name__ != "EvaBlockPostNorm":  # which norms nothing there
        assert not torch.allclose(
            tower.raw_query_key(without, x, call)[0], tower.query_key(tower.blocks[1], x, call)[0]
        )
    with anchorprune.prune(model, "anchor", k_anchors=2, top_m=4, score_input="raw") as pruning:
        encode(model, images)
    assert pruning.kept.shape == (len(images), tower.num_prefix_tokens + 6)


@torch.no_grad()
def test_a_tower_that_cannot_is_refused_in_one_line(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of another package, say, that was written before."""
    monkeypatch.setattr(OpenClipTower, "raw_query_key", Tower.raw_query_key)
    visual = make_visual()
    with (
        anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4, score_input="raw"),
        pytest.raises(UserError, match="score_input='raw': this tower projects LayerNorm's output alone; use normed"),
    ):
        visual(images)
    seen = Tokens(images.new_zeros(1, 9, 4), 1, lambda: (images, images))
    with pytest.raises(UserError, match="score_input='raw'"):
        make_strategy("anchor", k_anchors=2, top_m=4, score_input="raw").plan(seen, 6)


# Arguments.


def test_verbose_says_in_one_line_what_is_pruned(visual: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    anchorprune.apply_pruning_to_model(visual, k_anchors=2, top_m=4, prune_layer=3).restore()
    assert capsys.readouterr().out == ""
    anchorprune.apply_pruning_to_model(visual, k_anchors=2, top_m=4, prune_layer=3, verbose=True).restore()
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith(
        f"anchorprune: VisionTransformer with {LAYERS} blocks keeps 7 of {TOKENS} tokens from block 3 on"
    )
    assert "k_anchors=2" in line
    anchorprune.apply_pruning_to_model(visual, enable_pruning=False, verbose=True)
    assert capsys.readouterr().out == "anchorprune: pruning is off\n"


@torch.no_grad()
def test_images_are_moved_to_the_device_that_attention_is_asked_on(visual: nn.Module, images: Tensor) -> None:
    expected = anchorprune.get_vision_attention(visual, images)
    for device in ("cpu", torch.device("cpu"), "cpu:0"):
        torch.testing.assert_close(anchorprune.get_vision_attention(visual, images, device), expected)
    visual.to("meta")
    moved = anchorprune.get_vision_attention(visual, images, device="meta")
    assert [a.device.type for a in moved] == ["meta"] * LAYERS


@torch.no_grad()
def test_a_device_that_the_model_is_not_on_is_refused_in_one_line(visual: nn.Module, images: Tensor) -> None:
    with pytest.raises(UserError, match=r"device='meta': the model is on cpu; move it first: model\.to\('meta'\)"):
        anchorprune.get_vision_attention(visual, images, device="meta")
    with pytest.raises(UserError, match="device='gpu': no such device"):
        anchorprune.get_vision_attention(visual, images, device="gpu")
