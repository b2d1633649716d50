"""What a pruned model hands out of its blocks: refused where a whole grid is asked for, else what the blocks gave."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from support.libraries import LIBRARIES, hf_vision, in_open_clip
from support.strategies import SMALL, across, every_strategy
from torch import Tensor

import anchorprune
from anchorprune import UserError
from anchorprune.strategies import registry
from anchorprune.towers import find_tower


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


METHODS = ("forward_intermediates", "get_intermediate_layers")
OF_TIMM = {name: make for name, make in LIBRARIES.items() if name.startswith("timm")} | {
    "timm ViT in open_clip": in_open_clip("vit_base_patch16_224", img_size=32),
    "timm Eva in open_clip": in_open_clip("eva02_base_patch16_clip_224", img_size=32),
}


@pytest.mark.parametrize("library", OF_TIMM)
@torch.no_grad()
def test_what_would_take_the_kept_tokens_for_the_whole_grid_is_refused(library: str, images: Tensor) -> None:
    """4 patches would pass for a grid of 2 × 2. However one comes to the tower: the wrapper, what it wraps, a copy."""
    model = OF_TIMM[library]()
    trunk = getattr(model, "trunk", model)
    before = [set(vars(model)), set(vars(trunk))]
    for pruned in dict.fromkeys((model, trunk)):
        with anchorprune.prune(pruned, "random", keep_patches=4):
            for part in (model, trunk, copy.deepcopy(model)):
                for method in [name for name in METHODS if hasattr(part, name)]:
                    with pytest.raises(UserError, match=r"(forward_inter|get_inter)mediate.* needs the whole grid"):
                        getattr(part, method)(images)
        assert [set(vars(model)), set(vars(trunk))] == before
    expected = trunk.forward_intermediates(images, intermediates_only=True)
    with pytest.warns(UserWarning, match="nothing is dropped"):
        anchorprune.prune(model, "random", keep_patches=16)
    for ours, own in zip(trunk.forward_intermediates(images, intermediates_only=True), expected, strict=True):
        assert torch.equal(ours, own)


@torch.no_grad()
def test_a_method_that_the_user_put_there_is_there_again(images: Tensor) -> None:
    model = LIBRARIES["timm ViT"]()
    model.forward_intermediates = own = lambda images: "their own"
    with anchorprune.prune(model, "random", keep_patches=4), pytest.raises(UserError, match="needs the whole grid"):
        model.forward_intermediates(images)
    assert model.forward_intermediates is own


NOT_IN_4 = r"output_attentions: .* use anchorprune\.get_vision_attention"
OF_TRANSFORMERS = ["CLIP", "ChineseCLIP", "Siglip"]


@pytest.mark.parametrize(("kind", "strategy"), across(OF_TRANSFORMERS))
@torch.no_grad()
def test_hidden_states_have_the_tokens_of_each_block(kind: str, strategy: str, images: Tensor) -> None:
    model, seen = hf_vision(kind), []
    for block in find_tower(model).blocks:
        block.register_forward_hook(lambda block, args, output: seen.append(output))
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        first, *others = model(images, output_hidden_states=True).hidden_states
    if strategy != "vwt_intra":  # which drops at the input of block 1, after what is handed out first
        assert first.shape[1] == pruning.kept_before(1).shape[1]
        assert (first.shape[1] == pruning.tokens_before) == (strategy != "coarse")  # whose grid has fewer to begin with
    assert [x.shape[1] for x in others] == pruning.tokens_by_block
    for x, own in zip(others, seen, strict=True):
        assert torch.equal(x, own[0] if isinstance(own, tuple) else own)


@pytest.mark.parametrize("asked", ["call", "config"])
@pytest.mark.parametrize(("kind", "strategy"), across(OF_TRANSFORMERS))
@torch.no_grad()
def test_attentions_are_those_of_each_block(kind: str, asked: str, strategy: str, images: Tensor) -> None:
    model = hf_vision(kind)  # eager; transformers has no attentions to hand out of any other
    tower, flag = find_tower(model), {}
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        plain, expected = model(images).pooler_output, anchorprune.get_vision_attention(model, images)
        if asked == "call":
            flag["output_attentions"] = True
        else:
            model.config.output_attentions = True
        if isinstance(tower.returned(tower.blocks[0], plain), tuple) and pruning.strategy.acts == "inside":
            with pytest.raises(UserError, match=NOT_IN_4):
                model(images, **flag)
            return
        found = model(images, **flag)
    torch.testing.assert_close(found.pooler_output, plain, rtol=1e-4, atol=1e-4)
    for theirs, ours in zip(found.attentions, expected, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(transformers.__version__ < "5", reason="its own blocks return a tuple")
@every_strategy
@torch.no_grad()
def test_blocks_that_return_a_tuple_as_in_transformers_4_still_do(strategy: str, images: Tensor) -> None:
    model = hf_vision()
    old = copy.deepcopy(model)

    class Layer(type(old.encoder.layers[0])):
        def forward(self, hidden_states: Tensor, attention_mask: Any, output_attentions: bool = False) -> tuple:
            return (super().forward(hidden_states, attention_mask),)

    Layer.__module__ = "transformers.models.clip.modeling_clip"  # where it was

    def tokens_of(block: Any, args: tuple, output: tuple) -> Tensor:  # what the encoder of transformers 4 does
        (x,) = output
        return x

    for layer in old.encoder.layers:
        layer.__class__ = Layer
        layer.register_forward_hook(tokens_of)
    with (
        anchorprune.prune(model, strategy, **SMALL[strategy]) as expected,
        anchorprune.prune(old, strategy, **SMALL[strategy]) as pruning,
    ):
        assert torch.equal(old(images).pooler_output, model(images).pooler_output)
        assert torch.equal(pruning.kept, expected.kept)
        if registry()[strategy].acts == "inside":
            with pytest.raises(UserError, match=NOT_IN_4):
                old(images, output_attentions=True)
