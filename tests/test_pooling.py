"""Pooling counts a token as often as tokens were merged in it: merging copies changes nothing, whatever pools them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from support.libraries import LIBRARIES, encode, hf_siglip, hf_vision, in_open_clip, lively, timm_eva, timm_vit
from support.models import PATCH, make_visual
from support.strategies import SMALL
from torch import Tensor, nn

import anchorprune
from anchorprune import UserError
from anchorprune.strategies.tome import Tome, merge_plan
from anchorprune.tokens import TokenPlan, Tokens
from anchorprune.towers import find_tower


class MainAttention(nn.Module):
    """What open_clip's main branch (4.2.0.dev0) has in its pooler instead of nn.MultiheadAttention."""

    def __init__(self, own: nn.MultiheadAttention) -> None:
        super().__init__()
        self.own = own

    def forward(
        self, x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        assert k_x is not None
        mask = None if attn_mask is None else attn_mask.expand(-1, self.own.num_heads, x.shape[1], -1).flatten(0, 1)
        return self.own(x, k_x, v_x, attn_mask=mask, need_weights=False)[0]


class MainPooler(nn.Module):
    """open_clip's `AttentionalPooler` as its main branch calls the attention: keys and values by name."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.query, self.ln_q, self.ln_k, self.attn = own.query, own.ln_q, own.ln_k, MainAttention(own.attn)

    def forward(self, x: Tensor) -> Tensor:
        x = self.ln_k(x)
        return self.attn(self.ln_q(self.query).unsqueeze(0).expand(len(x), -1, -1), k_x=x, v_x=x)


def coca(main: bool = False) -> Any:
    visual = make_visual(attentional_pool=True, attn_pooler_heads=4, output_dim=16)
    if main:
        visual.attn_pool = MainPooler(visual.attn_pool)
    return visual


POOLS: dict[str, Any] = {
    "open_clip, mean": lambda: make_visual(pool_type="avg"),
    "open_clip, mean, norm after (CLIPA)": lambda: make_visual(pool_type="avg", final_ln_after_pool=True),
    "open_clip, mean, custom blocks": lambda: make_visual(pool_type="avg", block_type="custom"),
    "open_clip, attention (CoCa)": coca,
    "open_clip, attention, main branch": lambda: coca(main=True),
    "open_clip, attention, parallel": lambda: make_visual(
        attentional_pool="parallel", attn_pooler_heads=4, output_dim=32
    ),
    "open_clip, attention, cascade": lambda: lively(
        make_visual(attentional_pool="cascade", attn_pooler_heads=4, output_dim=32, width=32)
    ),
    "timm, mean": lambda: timm_vit(global_pool="avg"),
    "timm, mean with prefix": lambda: timm_vit(global_pool="avg", pool_include_prefix=True, reg_tokens=2),
    "timm, mean, no CLS": lambda: timm_vit(global_pool="avg", class_token=False),
    "timm, mean and maximum": lambda: timm_vit(global_pool="avgmax"),
    "timm, maximum": lambda: timm_vit(global_pool="max"),
    "timm, attention (SigLIP)": lambda: timm_vit(class_token=False, global_pool="map"),
    "timm, attention, beside a CLS token": lambda: timm_vit(global_pool="map"),
    "timm, attention with prefix": lambda: timm_vit(global_pool="map", pool_include_prefix=True),
    "timm Eva, mean": lambda: timm_eva(global_pool="avg", use_rot_pos_emb=False),
    "timm Eva, attention (PE-Core)": lambda: timm_eva(global_pool="map", use_rot_pos_emb=False),
    "timm in open_clip, mean": in_open_clip("vit_base_patch16_224", img_size=32, global_pool="avg"),
    "transformers SigLIP": hf_siglip,
    "transformers SigLIP, vision alone": lambda: hf_vision("Siglip", "sdpa"),
    "CLS alone": make_visual,
}
COMPILED = [  # of each kind of change to a tower one: compiling takes seconds
    "open_clip, mean",
    "open_clip, attention (CoCa)",
    "open_clip, attention, main branch",
    "open_clip, attention, cascade",
    "timm, mean with prefix",
    "timm, mean and maximum",
    "timm, attention (SigLIP)",
    "timm Eva, mean",
    "transformers SigLIP",
]


def of_copies(model: Any, distinct: int) -> Tensor:
    """Takes the model's places away; an image in which each of `distinct` patches is there equally often."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" in name and parameter.dim() > 1:
                patches = parameter[..., -16:, :]
                patches.copy_(patches[..., :1, :].clone())
    different = torch.randn(2, 3, distinct, PATCH, PATCH, generator=torch.Generator().manual_seed(5))
    # Of different numbers, so that a mean over those that are left is another than the mean over all.
    counts = torch.tensor([13, 3]) if distinct == 2 else torch.tensor([16])
    rows = different.repeat_interleave(counts, dim=2).unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5)
    return rows.reshape(2, 3, 4 * PATCH, 4 * PATCH)


def merge_copies(self: Tome, tokens: Tokens, keep_patches: int) -> TokenPlan:
    """Into the first of them goes every copy of it, as many as there have to go."""
    patches = tokens.x[:, tokens.num_prefix_tokens :]
    count = patches.shape[1] - keep_patches
    first = torch.cdist(patches, patches[:, :1])[:, :, 0] < 1e-3
    order = (first.float() + torch.linspace(0, 0.5, patches.shape[1])).sort(dim=1, descending=True).indices
    merged = order[:, :count].sort(dim=1).values
    return merge_plan(tokens, merged, torch.zeros_like(merged))


@pytest.mark.parametrize("distinct", [1, 2])
@pytest.mark.parametrize("pool", POOLS)
@torch.no_grad()
def test_merging_copies_changes_nothing(pool: str, distinct: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = POOLS[pool]()
    image = of_copies(model, distinct)
    dense = encode(model, image)
    monkeypatch.setattr(Tome, "plan", merge_copies)
    with anchorprune.prune(model, "tome", r=3) as pruning:
        pruned = encode(model, image)
    assert pruning.tokens_before - pruning.tokens_after == 12
    for ours, own in zip(as_tuple(pruned), as_tuple(dense), strict=True):
        torch.testing.assert_close(ours, own, rtol=1e-3, atol=1e-3)


def as_tuple(features: Any) -> tuple[Tensor, ...]:
    return features if isinstance(features, tuple) else (features,)


@pytest.mark.parametrize("pool", [name for name in POOLS if "mean" in name])
@torch.no_grad()
def test_a_mean_is_weighted_by_how_many_tokens_each_stands_for(pool: str, images: Tensor) -> None:
    """Also evit's, whose attention does not count them."""
    model = POOLS[pool]()
    trunk = getattr(model, "trunk", model)
    seen: list[Tensor] = []
    last = (trunk.transformer.resblocks if hasattr(trunk, "transformer") else trunk.blocks)[-1]
    hook = last.register_forward_hook(lambda block, args, output: seen.append(output))
    with anchorprune.prune(model, "evit", prune_layers=(2, 4), keep_patches=(8, 4)) as pruning:
        found = encode(model, images)
    hook.remove()
    sizes = pruning.record.sizes[5]
    assert sizes.amax() > 5
    # Each token as many times as it counts, through the unpruned model's own pooling.
    for i, (x, count) in enumerate(zip(seen[0], sizes, strict=True)):
        spread = x.repeat_interleave(count.long(), dim=0).unsqueeze(0)
        if hasattr(trunk, "transformer"):
            pooled = trunk._pool(spread)[0] @ trunk.proj
        else:
            pooled = trunk.forward_head(trunk.norm(spread))
            pooled = model.head(pooled) if trunk is not model else pooled
        torch.testing.assert_close(found[i : i + 1], pooled, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("strategy", ["tome", "evit", "coarse"])
@torch.no_grad()
def test_pooling_by_size_is_copied_and_works_under_autocast(pool: str, strategy: str, images: Tensor) -> None:
    model = POOLS[pool]()
    with anchorprune.prune(model, strategy, **SMALL[strategy]):
        expected = as_tuple(encode(model, images))[0]
        torch.testing.assert_close(as_tuple(encode(copy.deepcopy(model), images))[0], expected)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rough = as_tuple(encode(model, images))[0]
    assert nn.functional.cosine_similarity(rough.float(), expected, dim=-1).mean() > 0.8


@pytest.mark.parametrize("pool", COMPILED)
@torch.no_grad()
def test_pooling_by_size_compiles_into_one_graph(pool: str, images: Tensor) -> None:
    model = find_tower(POOLS[pool]()).module
    torch._dynamo.reset()
    with anchorprune.prune(model, "tome", r=3) as pruning:
        expected = as_tuple(encode(model, images))[0]
        found = as_tuple(encode(torch.compile(model, backend="eager", fullgraph=True), images))[0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert pruning.tokens_after == pruning.tokens_before - 12


@torch.no_grad()
def test_a_head_that_cannot_count_is_refused_where_tokens_are_merged() -> None:
    model = timm_vit(global_pool="prr")
    with pytest.raises(UserError, match="AttentionPoolPrr of timm pools without asking for how many a token stands"):
        anchorprune.prune(model, "tome", r=3)
    assert anchorprune.prune(model, "random", keep_patches=6).effective


@pytest.mark.parametrize("library", ["timm ViT, mean pooling", "transformers SigLIP"])
@torch.no_grad()
def test_where_nothing_is_merged_the_pooling_is_the_models_own(library: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    with anchorprune.prune(model, "random", keep_patches=6) as pruning:
        encode(model, images)
    assert not any(size is not None for size in pruning.record.sizes.values())
