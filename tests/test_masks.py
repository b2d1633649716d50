"""An attention mask handed to the blocks stays with its tokens."""

from __future__ import annotations

import pytest
import torch
from support.models import HEADS, LAYERS, TOKENS, WIDTH, make_visual
from torch import Tensor, nn

import anchorprune

BATCH, PRUNE_LAYER = 3, 2


def causal(dtype: torch.dtype) -> Tensor:
    masked = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    return masked if dtype is torch.bool else torch.zeros(TOKENS, TOKENS).masked_fill(masked, -float("inf"))


def random_mask(*shape: int) -> Tensor:
    return torch.randn(*shape, TOKENS, TOKENS, generator=torch.Generator().manual_seed(3))


# What each kind of block takes. nn.MultiheadAttention takes no 4-D mask.
CASES = {
    "2-D additive": ("default", causal(torch.float32)),
    "3-D, one for each image and head": ("default", random_mask(BATCH * HEADS)),
    "custom block, 2-D": ("custom", random_mask()),
    "custom block, boolean": ("custom", causal(torch.bool)),
    "boolean": ("default", causal(torch.bool)),
    "tokens-first blocks, 2-D": ("tokens first", causal(torch.float32)),
    "tokens-first blocks, 3-D": ("tokens first", random_mask(BATCH * HEADS)),
    "custom block, 3-D": ("custom", random_mask(BATCH * HEADS)),
    "custom block, 4-D": ("custom", random_mask(BATCH, HEADS)),
    "custom block, 4-D for all heads": ("custom", random_mask(BATCH, 1)),
    "custom block, 4-D for all images": ("custom", random_mask(1, HEADS)),
}


def by_hand(mask: Tensor, kept: Tensor, image: int) -> Tensor:
    """The mask of one image at its kept tokens, `[1·H, K, K]`."""
    full = {
        2: lambda: mask.expand(HEADS, TOKENS, TOKENS),
        3: lambda: mask[image * HEADS : (image + 1) * HEADS],
        4: lambda: mask.expand(BATCH, HEADS, TOKENS, TOKENS)[image],
    }[mask.dim()]()
    return full[:, kept[image]][:, :, kept[image]]


@pytest.mark.parametrize("positional", [False, True], ids=["keyword", "positional"])
@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_mask_is_gathered_for_each_image_in_every_block_from_prune_layer_on(case: str, positional: bool) -> None:
    kind, mask = CASES[case]
    visual = make_visual(block_type="custom" if kind == "custom" else "default")
    blocks = visual.transformer.resblocks
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
    if kind == "tokens first":
        visual.transformer.batch_first = False
        for block in blocks:
            block.attn.batch_first = False

    def call(block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        """The block on x `[B, N, D]`, whatever its layout."""
        x = x.transpose(0, 1) if kind == "tokens first" else x
        if not positional:
            y = block(x, attn_mask=mask)
        else:  # as open_clip itself calls a block under gradient checkpointing
            y = block(x, mask) if kind == "custom" else block(x, None, None, mask)
        return y.transpose(0, 1) if kind == "tokens first" else y

    with anchorprune.prune(visual, "random", keep_patches=6) as pruning:
        y = x
        for block in blocks:
            y = call(block, y, mask)

    first = x
    for block in blocks[: PRUNE_LAYER - 1]:
        first = call(block, first, mask)
    for image in range(BATCH):
        expected = first[image : image + 1, pruning.kept[image]]
        for block in blocks[PRUNE_LAYER - 1 :]:
            expected = call(block, expected, by_hand(mask, pruning.kept, image))
        torch.testing.assert_close(y[image : image + 1], expected)


@torch.no_grad()
def test_masks_differ_by_image_when_the_kept_tokens_do() -> None:
    visual = make_visual()
    x = torch.randn(BATCH, TOKENS, WIDTH, generator=torch.Generator().manual_seed(2))
    mask = random_mask()
    seen: list[Tensor] = []
    blocks = visual.transformer.resblocks
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4) as pruning:
        hooks = [
            block.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["attn_mask"]), with_kwargs=True
            )
            for block in blocks
        ]
        for block in blocks:
            x = block(x, attn_mask=mask)
    for hook in hooks:
        hook.remove()
    assert len({tuple(row) for row in pruning.kept.tolist()}) > 1
    assert seen[0] is mask
    for gathered in seen[1:]:
        assert torch.equal(gathered, torch.cat([by_hand(mask, pruning.kept, i) for i in range(BATCH)]))
    assert len(seen) == LAYERS


@torch.no_grad()
def test_a_mask_is_left_alone_when_nothing_is_dropped() -> None:
    visual = make_visual()
    x = torch.randn(BATCH, TOKENS, WIDTH)
    block = visual.transformer.resblocks[1]
    expected = block(x, attn_mask=causal(torch.float32))
    with pytest.warns(UserWarning, match="nothing is dropped"):
        anchorprune.prune(visual, "random", keep_patches=100)
    assert torch.equal(block(x, attn_mask=causal(torch.float32)), expected)
