"""The same pruning in every library: all strategies in the towers of transformers and timm."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import open_clip
import pytest
import torch
import transformers
from support import naive
from support.libraries import LIBRARIES, as_transformers, encode, hf_vision, timm_eva
from support.models import LAYERS, make_clip
from support.strategies import COVERING, SMALL, across, every_strategy
from torch import Tensor

import anchorprune
from anchorprune import UserError
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies import make_strategy, standalone
from anchorprune.tokens import Tokens, attention_from, attention_received, head_attention
from anchorprune.towers import find_tower

every_library = pytest.mark.parametrize("library", LIBRARIES)
across_libraries = pytest.mark.parametrize(("library", "strategy"), across(LIBRARIES))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@every_library
@torch.no_grad()
def test_the_two_halves_of_a_block_are_the_block(library: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    tower = find_tower(model)
    calls: list[tuple] = []
    for block in tower.blocks:
        block.register_forward_hook(lambda *call: calls.append(call), with_kwargs=True)
    encode(model, images)
    assert len(calls) == LAYERS
    for block, args, kwargs, output in calls:
        x = tower.tokens(args[0])
        assert x.shape[1] == tower.num_tokens
        between, q, k = tower.attention_half(block, x, None, kwargs)
        ours = tower.returned(block, tower.tokens(tower.mlp_half(block, between)))
        torch.testing.assert_close(ours, output, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tower.query_key(block, x, kwargs), (q, k))
        assert q.shape[1] == tower.num_heads(block)


@across_libraries
@torch.no_grad()
def test_every_strategy_prunes_every_tower(library: str, strategy: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    tower = find_tower(model)
    keys, dense, flops = list(model.state_dict()), encode(model, images), image_tower_flops(model)
    left = min(make_strategy(strategy, **SMALL[strategy]).schedule(tower.num_patches, LAYERS).values())
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        pruned = encode(model, images)
        assert image_tower_flops(model) < flops
    prefix = tower.num_prefix_tokens
    assert (pruning.tokens_before, pruning.tokens_after) == (tower.num_tokens, prefix + left)
    assert (pruning.kept[:, :prefix] == torch.arange(prefix)).all()
    assert (pruning.kept.diff(dim=1) > 0).all()
    assert pruned.shape == dense.shape
    assert not torch.allclose(pruned, dense)
    assert torch.equal(encode(model, images), dense)  # restored
    assert list(model.state_dict()) == keys

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that nothing is dropped
        covering = anchorprune.prune(model, strategy, **COVERING[strategy])
    assert torch.equal(encode(model, images), dense)
    assert not covering.effective


@across_libraries
@torch.no_grad()
def test_images_are_pruned_each_on_its_own(library: str, strategy: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        together, kept = encode(model, images), pruning.kept
        for i in range(2):
            torch.testing.assert_close(encode(model, images[i : i + 1])[0], together[i], rtol=1e-4, atol=1e-4)
            assert torch.equal(pruning.kept[0], kept[i])


@every_library
@torch.no_grad()
def test_dropping_patches_is_running_without_them(library: str, images: Tensor) -> None:
    """At the input of block 2: from there on the tokens see each other as they would if the others were masked."""
    model = LIBRARIES[library]()
    tower = find_tower(model)
    with anchorprune.prune(model, "random", keep_patches=6) as pruning:
        pruned = encode(model, images)
    kept = pruning.kept[0]
    hidden = torch.ones(tower.num_tokens, dtype=torch.bool).scatter(0, kept, False)
    bias = torch.zeros(1, tower.num_tokens).masked_fill_(hidden, -float("inf"))

    def masked(block: Any, args: tuple, kwargs: dict, output: Any, left: Any = slice(None)) -> Tensor:
        between, *_ = tower.attention_half(block, tower.tokens(args[0]), bias, kwargs)
        return tower.returned(block, tower.tokens(tower.mlp_half(block, between)[:, left]))

    def cut(block: Any, args: tuple, kwargs: dict, output: Any) -> Tensor:
        return masked(block, args, kwargs, output, kept)

    hooks = [block.register_forward_hook(masked, with_kwargs=True) for block in tower.blocks[1:-1]]
    hooks.append(tower.blocks[-1].register_forward_hook(cut, with_kwargs=True))
    torch.testing.assert_close(pruned, encode(model, images), rtol=1e-4, atol=1e-4)
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@every_strategy
@torch.no_grad()
def test_the_same_weights_keep_the_same_tokens_in_open_clip_and_transformers(
    activation: str, strategy: str, images: Tensor
) -> None:
    ours: Any = make_clip()
    if activation == "quick_gelu":
        for block in ours.visual.transformer.resblocks:
            block.mlp.gelu = open_clip.transformer.QuickGELU()
    theirs = as_transformers(ours, activation)
    torch.testing.assert_close(theirs(images).image_embeds, ours.encode_image(images), rtol=1e-4, atol=1e-4)
    with (
        anchorprune.prune(ours, strategy, **SMALL[strategy]) as a,
        anchorprune.prune(theirs, strategy, **SMALL[strategy]) as b,
    ):
        torch.testing.assert_close(theirs(images).image_embeds, ours.encode_image(images), rtol=1e-4, atol=1e-4)
        assert torch.equal(a.kept, b.kept)


@every_library
@torch.no_grad()
def test_attention_is_read_in_every_library(library: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    tower = find_tower(model)
    attention = anchorprune.get_vision_attention(model, images)
    assert [tuple(a.shape[2:]) for a in attention] == [(tower.num_tokens, tower.num_tokens)] * LAYERS
    with anchorprune.prune(model, "random", keep_patches=6):
        pruned = anchorprune.get_vision_attention(model, images)
    torch.testing.assert_close(pruned[0], attention[0])
    left = tower.num_prefix_tokens + 6
    assert [tuple(a.shape[2:]) for a in pruned[1:]] == [(left, left)] * (LAYERS - 1)
    assert all(torch.allclose(a.sum(-1), torch.ones(())) for a in attention + pruned)


def test_eager_attention_is_what_transformers_itself_reports(images: Tensor) -> None:
    model = hf_vision()
    own = model(images, output_attentions=True).attentions
    for ours, theirs in zip(anchorprune.get_vision_attention(model, images), own, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# No CLS token.


def test_without_a_cls_token_a_patch_matters_by_the_attention_that_it_gets() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 3, 2, 9, 4, generator=generator, dtype=torch.float64)
    for prefix in (0, 2):
        tokens = Tokens(torch.randn(3, 9, 8), prefix, lambda: (q, k), has_cls=False)
        for i in range(3):
            attention = naive.attention(q[i], k[i])
            expected = [sum(row[j] for row in attention) / 9 for j in range(prefix, 9)]
            assert attention_received(tokens)[i].tolist() == pytest.approx(expected)


@torch.no_grad()
def test_the_query_of_siglips_head_is_what_its_attention_uses(images: Tensor) -> None:
    model = LIBRARIES["transformers SigLIP"]()
    head, tower = model.vision_model.head, find_tower(model)
    x = model.vision_model.encoder(model.vision_model.embeddings(images)).last_hidden_state
    normed = model.vision_model.post_layernorm(x)
    probe = head.probe.expand(len(x), -1, -1)
    _, weights = head.attention(probe, normed, normed, need_weights=True)
    torch.testing.assert_close(attention_from(*tower.pool_query_key(x)), weights[:, 0])


@torch.no_grad()
def test_the_query_of_timms_head_is_what_its_pooling_uses(images: Tensor) -> None:
    model = LIBRARIES["timm ViT, attention pooling, no CLS (SigLIP)"]()
    pool, normed = model.attn_pool, model.forward_features(images)
    model.norm = torch.nn.Identity()  # normed already
    q, k = find_tower(model).pool_query_key(normed)
    v = pool.kv(normed).chunk(2, dim=-1)[1].unflatten(-1, (pool.num_heads, -1)).transpose(1, 2)
    pooled = pool.proj((head_attention(q, k) @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close((pooled + pool.mlp(pool.norm(pooled)))[:, 0], pool(normed), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("library", ["transformers SigLIP", "timm ViT, attention pooling, no CLS (SigLIP)"])
def test_the_pooling_heads_query_can_stand_in_for_cls(library: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    tower, seen = find_tower(model), []
    hook = tower.blocks[1].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    encode(model, images)
    hook.remove()
    expected = attention_from(*tower.pool_query_key(seen[0])).topk(5, dim=1).indices.sort(dim=1).values
    fields = {"k_anchors": 5, "top_m": 0}
    with anchorprune.prune(model, "anchor", cls_substitute="pool_query", **fields) as pruning:
        encode(model, images)
    assert torch.equal(pruning.kept, expected)
    with anchorprune.prune(model, "anchor", **fields) as pruning:
        encode(model, images)
    assert not torch.equal(pruning.kept, expected)


@torch.no_grad()
@pytest.mark.parametrize("strategy", ["anchor", "cls_attention", "evit"])
def test_where_no_head_has_a_query_it_cannot_stand_in(strategy: str, images: Tensor) -> None:
    model = LIBRARIES["timm ViT, registers and no CLS"]()
    with (
        anchorprune.prune(model, strategy, cls_substitute="pool_query", **SMALL[strategy]),
        pytest.raises(UserError, match="this tower's pooling has no query; use received"),
    ):
        encode(model, images)
    with_cls = LIBRARIES["timm ViT"]()
    with anchorprune.prune(with_cls, strategy, **SMALL[strategy]):
        expected = encode(with_cls, images)
    with anchorprune.prune(with_cls, strategy, cls_substitute="pool_query", **SMALL[strategy]):
        assert torch.equal(encode(with_cls, images), expected)  # CLS is there: nothing to stand in for


@torch.no_grad()
def test_the_described_budget_keeps_60_of_196_patches_of_siglip() -> None:
    model = open_clip.create_model("ViT-B-16-SigLIP", device="meta").visual
    with anchorprune.apply_pruning_to_model(model) as pruning:
        model(torch.empty(2, 3, 224, 224, device="meta"))
    assert (pruning.tokens_before, pruning.tokens_after) == (196, 60)


# Training.


@pytest.mark.parametrize("library", ["transformers CLIP", "transformers SigLIP", "timm ViT", "timm Eva, rotary"])
@pytest.mark.parametrize("strategy", ["anchor", "thin", "tome"])
def test_gradients_flow_and_are_the_same_under_checkpointing(library: str, strategy: str, images: Tensor) -> None:
    gradients, original = [], LIBRARIES[library]().train()
    for checkpointing in (False, True):
        model = copy.deepcopy(original)
        if checkpointing and library.startswith("timm"):
            model.set_grad_checkpointing(True)
        elif checkpointing and hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        elif checkpointing:  # transformers 4
            model.gradient_checkpointing_enable({"use_reentrant": False})
        with anchorprune.prune(model, strategy, **SMALL[strategy]):
            encode(model, images).square().sum().backward()
        own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert any("encoder.layers.0" in name or "blocks.0" in name for name in own)
        gradients.append(own)
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", ["transformers CLIP", "timm Eva, rotary"])
# Not these: what a token weighs in an average is a constant to the gradient, and moves a finite difference.
@pytest.mark.parametrize("strategy", sorted(set(standalone()) - {"evit", "token_transforming"}))
def test_gradients_are_those_of_finite_differences(library: str, strategy: str, images: Tensor) -> None:
    model = LIBRARIES[library]().double()
    images = images[:1].double()
    weight = find_tower(model).blocks[0].mlp.fc1.weight if "Eva" not in library else model.blocks[0].attn.proj.weight
    with anchorprune.prune(model, strategy, **SMALL[strategy]):

        def loss() -> Tensor:
            return encode(model, images).square().sum()

        (gradient,) = torch.autograd.grad(loss(), weight)
        for place in ((0, 0), (3, 5), (7, 2)):
            values, original = [], weight[place].item()
            for step in (1e-6, -1e-6):
                with torch.no_grad():
                    weight[place] = original + step
                    values.append(float(loss()))
                    weight[place] = original
            assert (values[0] - values[1]) / 2e-6 == pytest.approx(float(gradient[place]), rel=1e-4, abs=1e-4)


# Refusals.


@pytest.mark.skipif(not hasattr(transformers, "Siglip2VisionConfig"), reason="transformers before 4.49")
def test_siglip2_of_any_resolution_is_refused() -> None:
    config = transformers.Siglip2VisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    with pytest.raises(UserError, match=r"Siglip2Vision\w+: its patches come in any number"):
        anchorprune.prune(transformers.Siglip2VisionModel(config), "random", keep_patches=3)


def test_other_models_of_transformers_are_refused() -> None:
    bert = transformers.BertModel(transformers.BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(UserError, match="BertModel: it is another tower"):
        anchorprune.prune(bert, "random", keep_patches=3)


def test_a_deep_copy_of_a_pruned_eva_is_restored_on_its_own(images: Tensor) -> None:
    model = timm_eva()
    with torch.no_grad():
        dense = model(images)
        with anchorprune.prune(model, "thin", keep_patches=6):
            other = copy.deepcopy(model)
            anchorprune.restore(other)
            assert torch.equal(other(images), dense)
            assert not torch.equal(model(images), dense)
