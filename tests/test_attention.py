"""`get_vision_attention` equals what the attention modules themselves would report."""

from __future__ import annotations

import pytest
import torch
from support.models import HEADS, LAYERS, TOKENS, make_visual
from torch import Tensor, nn

import anchorprune


def reported(visual: nn.Module, images: Tensor) -> list[Tensor]:
    """The weights of `nn.MultiheadAttention(..., need_weights=True)` in every block, on the block's own input."""
    weights: list[Tensor] = []

    def look(block: nn.Module, args: tuple) -> None:
        h = block.ln_1(args[0])
        weights.append(block.attn(h, h, h, need_weights=True, average_attn_weights=False)[1])

    hooks = [block.register_forward_pre_hook(look) for block in visual.transformer.resblocks]
    visual(images)
    for hook in hooks:
        hook.remove()
    return weights


@torch.no_grad()
def test_it_equals_multihead_attentions_own_weights(visual: nn.Module, images: Tensor) -> None:
    attention = anchorprune.get_vision_attention(visual, images)
    assert [tuple(a.shape) for a in attention] == [(len(images), HEADS, TOKENS, TOKENS)] * LAYERS
    torch.testing.assert_close(attention, reported(visual, images))


@pytest.mark.parametrize("prune_layer", range(2, LAYERS + 1))
@torch.no_grad()
def test_on_a_pruned_model_it_is_that_of_the_tokens_that_are_left(
    visual: nn.Module, images: Tensor, prune_layer: int
) -> None:
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4, prune_layer=prune_layer):
        attention = anchorprune.get_vision_attention(visual, images)
        expected = reported(visual, images)
    assert [a.shape[-1] for a in attention] == [TOKENS] * (prune_layer - 1) + [7] * (LAYERS - prune_layer + 1)
    torch.testing.assert_close(attention, expected)


@torch.no_grad()
def test_blocks_of_open_clips_own_attention_are_read_too(images: Tensor) -> None:
    plain, custom = make_visual(), make_visual(block_type="custom")
    custom.load_state_dict(plain.state_dict())
    torch.testing.assert_close(
        anchorprune.get_vision_attention(custom, images), anchorprune.get_vision_attention(plain, images)
    )


@torch.no_grad()
def test_looking_changes_nothing_and_leaves_nothing_behind(visual: nn.Module, images: Tensor) -> None:
    dense = visual(images)
    anchorprune.get_vision_attention(visual, images)
    assert torch.equal(visual(images), dense)
    with pytest.raises(RuntimeError):
        anchorprune.get_vision_attention(visual, images[:, :1])
    assert not any(block._forward_pre_hooks for block in visual.transformer.resblocks)


def test_rows_sum_to_one_and_half_precision_can_be_asked_for(clip: nn.Module, images: Tensor) -> None:
    attention = anchorprune.get_vision_attention(clip, images, dtype=torch.float16)
    assert all(a.dtype == torch.float16 and not a.requires_grad for a in attention)
    for a in attention:
        torch.testing.assert_close(a.float().sum(-1), torch.ones(a.shape[:-1]), atol=2e-3, rtol=0)


@torch.no_grad()
def test_qk_norm_is_part_of_the_attention(images: Tensor) -> None:
    visual = make_visual(qk_norm=True)
    block = visual.transformer.resblocks[0]
    for norm in (block.attn.ln_q, block.attn.ln_k):
        nn.init.normal_(norm.weight)
    h = block.ln_1(visual._embeds(images))
    q, k, v = (
        t.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for t in nn.functional.linear(h, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
    )
    out = nn.functional.scaled_dot_product_attention(block.attn.ln_q(q), block.attn.ln_k(k), v)
    ours = anchorprune.get_vision_attention(visual, images)[0] @ v
    torch.testing.assert_close(ours, out)


@pytest.mark.parametrize("positional", [False, True], ids=["keyword", "positional"])
@torch.no_grad()
def test_a_mask_is_part_of_the_attention(visual: nn.Module, images: Tensor, positional: bool) -> None:
    mask = torch.zeros(TOKENS, TOKENS).masked_fill(torch.ones(TOKENS, TOKENS).triu(1).bool(), -float("inf"))
    transformer = visual.transformer
    # A tower that hands a mask to its blocks: positionally, as under gradient checkpointing, or by keyword.
    transformer.set_mask = lambda module, args: (args[0], mask)
    transformer.register_forward_pre_hook(transformer.set_mask)
    transformer.grad_checkpointing = positional
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4, prune_layer=3) as pruning:
        attention = anchorprune.get_vision_attention(visual, images)
    for a in attention[:2]:
        assert (a.triu(1) == 0).all()
    torch.testing.assert_close(attention[0].sum(-1), torch.ones(attention[0].shape[:-1]))
    for a in attention[2:]:  # kept tokens ascend, so the gathered mask is causal too
        assert a.shape[-1] == pruning.tokens_after
        assert (a.triu(1) == 0).all()
        assert (a.diagonal(dim1=-2, dim2=-1) > 0).all()
