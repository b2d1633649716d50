"""What a user put into a model takes part in the pruned model too, or is refused in one sentence before it runs.

The oracle is the model itself: adapters that are merged into the weights, modules that are put where the adapters were,
and hooks that are counted.
"""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from support.libraries import LIBRARIES, VISION, encode, hf_clip, hf_dinov2, hf_vit, lively, timm_eva, timm_vit
from support.models import make_clip, make_visual
from support.strategies import SMALL, across, every_kind, every_strategy
from torch import Tensor, nn
from torch.nn.utils import parametrize

import anchorprune
from anchorprune import UserError
from anchorprune.strategies import registry, standalone
from anchorprune.tokens import gather_tokens
from anchorprune.towers import find_tower

peft = pytest.importorskip("peft")

INSIDE = sorted(name for name, cls in registry().items() if name in standalone() and cls.acts == "inside")
AT_INPUT = sorted(set(standalone()) - set(INSIDE))


def seeded_lora(model: nn.Module, targets: list[str]) -> Any:
    """The model with LoRA adapters that change it."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=4, target_modules=targets, init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what peft takes from transformers has another name by now
        return peft.get_peft_model(model, config).eval()


ADAPTED: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "timm qkv and proj": (timm_vit, ["qkv", "proj"]),
    "timm MLP": (timm_vit, ["fc1", "fc2"]),
    "timm Eva, q/k/v apart": (lambda: timm_eva(qkv_fused=False), ["q_proj", "k_proj", "v_proj"]),
    "timm Eva, attention of its ViTs": (lambda: timm_eva(attn_type="rope", norm_layer=nn.LayerNorm), ["qkv", "proj"]),
    "transformers CLIP": (hf_clip, ["q_proj", "k_proj", "v_proj", "out_proj"]),
    "transformers ViT": (hf_vit, ["q_proj", "v_proj", "o_proj", "fc1"]),
    "transformers DINOv2": (hf_dinov2, ["k_proj", "o_proj", "fc2"]),
    "open_clip MLP": (make_visual, ["c_fc", "c_proj"]),
    "open_clip custom blocks, out_proj": (lambda: make_visual(block_type="custom"), ["out_proj", "c_fc"]),
}


@pytest.mark.parametrize(("what", "strategy"), across(ADAPTED))
@torch.no_grad()
def test_adapters_count_as_if_they_were_merged(what: str, strategy: str, images: Tensor) -> None:
    make, targets = ADAPTED[what]
    base = make()
    with anchorprune.prune(base, strategy, **SMALL[strategy]):
        without = encode(base, images)
    model = seeded_lora(base, targets)
    merged = copy.deepcopy(model).merge_and_unload()
    inner = model.base_model.model
    torch.testing.assert_close(encode(inner, images), encode(merged, images), rtol=1e-4, atol=1e-4)
    with (
        anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning,
        anchorprune.prune(merged, strategy, **SMALL[strategy]) as expected,
    ):
        torch.testing.assert_close(encode(inner, images), encode(merged, images), rtol=1e-4, atol=1e-4)
        assert torch.equal(pruning.kept, expected.kept)
        assert not torch.allclose(encode(inner, images), without, rtol=1e-3, atol=1e-3)


@every_strategy
@torch.no_grad()
def test_an_adapter_around_open_clips_attention_takes_part_or_is_refused(strategy: str, images: Tensor) -> None:
    model = seeded_lora(make_visual(), ["attn"])
    visual = model.base_model.model
    adapted = visual(images)
    if not registry()[strategy].scores:  # which runs the blocks as they are
        merged = copy.deepcopy(model).merge_and_unload()
        with (
            anchorprune.prune(model, strategy, **SMALL[strategy]),
            anchorprune.prune(merged, strategy, **SMALL[strategy]),
        ):
            torch.testing.assert_close(visual(images), merged(images), rtol=1e-4, atol=1e-4)
    else:
        with pytest.raises(
            UserError, match=r"cannot prune by \w+: block \d's attn is MultiheadAttention with a forward"
        ):
            anchorprune.prune(model, strategy, **SMALL[strategy])
    torch.testing.assert_close(visual(images), adapted)


@torch.no_grad()
def test_open_clips_own_attention_passes_over_what_wraps_its_out_proj_and_so_do_we(images: Tensor) -> None:
    plain, model = make_visual(), seeded_lora(make_visual(), ["out_proj"])
    assert torch.equal(model(images), plain(images))  # nn.MultiheadAttention reads the weight beneath
    for name in ("tome", "anchor"):
        with (
            anchorprune.prune(model, name, **SMALL[name]),
            anchorprune.prune(plain, name, **SMALL[name]),
        ):
            torch.testing.assert_close(model(images), plain(images))


# Quantised.

QUANTISED = {
    "open_clip": make_visual,
    "open_clip, custom blocks": lambda: make_visual(block_type="custom"),
    "timm ViT": timm_vit,
    "timm Eva, q/k/v apart": lambda: timm_eva(qkv_fused=False),
    "transformers CLIP": hf_clip,
}


@pytest.mark.parametrize(("library", "strategy"), across(QUANTISED))
@torch.no_grad()
def test_a_dynamically_quantised_model_is_pruned_as_it_is(library: str, strategy: str, images: Tensor) -> None:
    model = QUANTISED[library]()
    with anchorprune.prune(model, strategy, **SMALL[strategy]):
        exact = encode(model, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao moves to torchao, and says so
        quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    tower, seen = find_tower(quantised), []
    hooks = [block.register_forward_hook(lambda *call: seen.append(call), with_kwargs=True) for block in tower.blocks]
    dense = encode(quantised, images)
    for block, args, kwargs, output in seen:  # the halves are what the quantised block does, to the last of its steps
        x = tower.tokens(args[0])
        between, _, _ = tower.attention_half(block, x, None, kwargs)
        ours = tower.returned(block, tower.tokens(tower.mlp_half(block, between)))
        torch.testing.assert_close(ours, output, rtol=1e-3, atol=0.1)
    for hook in hooks:
        hook.remove()
    with anchorprune.prune(quantised, strategy, **SMALL[strategy]) as pruning:
        pruned = encode(quantised, images)
    assert pruning.effective
    assert nn.functional.cosine_similarity(pruned, exact).mean() > 0.8
    assert torch.equal(encode(quantised, images), dense)


# Parametrised.


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


PARAMETRISED: dict[str, tuple[Callable[[], Any], str]] = {
    "open_clip in_proj": (make_visual, "transformer.resblocks.{}.attn:in_proj_weight"),
    "open_clip out_proj": (make_visual, "transformer.resblocks.{}.attn.out_proj:weight"),
    "open_clip MLP": (make_visual, "transformer.resblocks.{}.mlp.c_fc:weight"),
    "timm qkv": (timm_vit, "blocks.{}.attn.qkv:weight"),
    "timm Eva qkv": (timm_eva, "blocks.{}.attn.qkv:weight"),
    "timm Eva bias": (timm_eva, "blocks.{}.attn:q_bias"),
    "timm LayerScale": (lambda: timm_eva(init_values=0.5), "blocks.{}:gamma_1"),
    "transformers CLIP": (hf_clip, "vision_model.encoder.layers.{}.self_attn.v_proj:weight"),
}


@pytest.mark.parametrize(("what", "strategy"), across(PARAMETRISED))
@torch.no_grad()
def test_parametrisations_count(what: str, strategy: str, images: Tensor) -> None:
    make, path = PARAMETRISED[what]
    model = make()
    plain = copy.deepcopy(model)
    for number in range(4):
        name, tensor = path.format(number).split(":")
        parametrize.register_parametrization(model.get_submodule(name), tensor, Doubled())
        getattr(plain.get_submodule(name), tensor).mul_(2)
    with (
        anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning,
        anchorprune.prune(plain, strategy, **SMALL[strategy]) as expected,
    ):
        torch.testing.assert_close(encode(model, images), encode(plain, images), rtol=1e-4, atol=1e-4)
        assert torch.equal(pruning.kept, expected.kept)


@torch.no_grad()
def test_a_parametrised_positional_embedding_is_refused_where_it_would_be_passed_over(images: Tensor) -> None:
    visual = make_visual()
    parametrize.register_parametrization(visual, "positional_embedding", Doubled())
    dense = visual(images)
    with pytest.raises(UserError, match="positional_embedding of this tower, which is parametrised"):
        anchorprune.prune(visual, "coarse", keep_patches=6)
    assert torch.equal(visual(images), dense)
    assert anchorprune.prune(visual, "thin", keep_patches=6).effective


# Hooks.

HOOKED = [
    "open_clip",
    "open_clip, custom blocks",
    "timm ViT",
    "timm Eva, rotary",
    "transformers CLIP",
    "transformers ViT",
]


def hooked(library: str) -> Any:
    return QUANTISED[library]() if library.startswith("open_clip") else LIBRARIES[library]()


@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
@pytest.mark.parametrize(("library", "strategy"), across(HOOKED))
@torch.no_grad()
def test_every_hook_fires_as_often_as_unpruned_or_is_refused(
    library: str, strategy: str, kind: str, images: Tensor
) -> None:
    fields, refused = SMALL[strategy], set()
    names = [name for name, _ in find_tower(hooked(library)).blocks[2].named_modules()]
    for name in names:
        model, fired = hooked(library), Counter()
        for number, block in enumerate(find_tower(model).blocks, 1):
            part = block.get_submodule(name)
            getattr(part, f"register_{kind}")(lambda *call, number=number, fired=fired: fired.update([number]))
        encode(model, images)
        unpruned = dict(fired)
        fired.clear()
        try:
            pruning = anchorprune.prune(model, strategy, **fields)
        except UserError:
            refused.add(name)
            with pytest.raises(UserError, match=r"has a forward (pre-)?hook"):
                anchorprune.prune(model, strategy, **fields)
            continue
        encode(model, images)
        assert dict(fired) == unpruned, name
        pruning.restore()
    # Refused are the attention, which is not called where a strategy acts inside of its block, and what is asked for
    # scores where one acts at its input; never the block, its MLP or its output.
    assert not any(
        name.startswith("mlp") or name in ("", "attn.proj", "attn.out_proj", "norm2", "ln_2") for name in refused
    )
    assert refused or not registry()[strategy].scores or (strategy in AT_INPUT and kind == "forward_pre_hook")


@torch.no_grad()
def test_hooks_that_steer_a_projection_steer_the_pruned_one_too(images: Tensor) -> None:
    model = timm_vit()
    plain = copy.deepcopy(model)
    for block in model.blocks:
        block.attn.proj.register_forward_hook(lambda part, args, output: output + 1)
    for block in plain.blocks:
        block.attn.proj.bias.add_(1)
    with anchorprune.prune(model, "tome", r=3), anchorprune.prune(plain, "tome", r=3):
        torch.testing.assert_close(model(images), plain(images), rtol=1e-4, atol=1e-4)


class Louder(nn.MultiheadAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output, weights = super().forward(*args, **kwargs)
        return 2 * output, weights


def own_forward(block: Any) -> None:
    block.forward = lambda x, *args, **kwargs: 2 * type(block).forward(block, x, *args, **kwargs)


def own_method(block: Any) -> None:
    block.attention = lambda *args, **kwargs: 2 * type(block).attention(block, *args, **kwargs)


def own_attention(block: Any) -> None:
    block.attn.forward = lambda *args, **kwargs: (args[0], None)


def own_class(block: Any) -> None:
    block.attn.__class__ = Louder


@pytest.mark.parametrize("change", [own_forward, own_method, own_attention, own_class])
@every_kind
@torch.no_grad()
def test_code_of_the_users_own_runs_or_is_refused(change: Any, strategy: str, images: Tensor) -> None:
    visual = make_visual()
    for block in visual.transformer.resblocks:
        change(block)
    dense = visual(images)
    if not registry()[strategy].scores:
        with anchorprune.prune(visual, strategy, **SMALL[strategy]) as pruning:
            pruned = visual(images)
        by_hand, acts = visual._embeds(images), 1 if strategy == "vwt_intra" else 2
        for number, block in enumerate(visual.transformer.resblocks, 1):
            by_hand = block(gather_tokens(by_hand, pruning.kept) if number == acts else by_hand)
        assert torch.equal(pruned, visual._pool(by_hand)[0] @ visual.proj)
    else:
        with pytest.raises(UserError, match=r"cannot prune by \w+: block \d.* (of its own|with a forward of)"):
            anchorprune.prune(visual, strategy, **SMALL[strategy])
    assert torch.equal(visual(images), dense)


@torch.no_grad()
def test_what_comes_while_it_is_restored_is_seen_at_the_next_entry() -> None:
    visual = make_visual()
    with anchorprune.prune(visual, "tome", r=3) as pruning:
        pass
    own_forward(visual.transformer.resblocks[3])
    with pytest.raises(UserError, match="block 4 has a forward of its own"):
        pruning.__enter__()
    assert "anchorprune_handle" not in vars(visual.transformer.resblocks[0])


def test_attention_that_somebody_registered_with_transformers_is_refused() -> None:
    model = hf_clip()
    model.vision_model.config._attn_implementation = "mine"
    with pytest.raises(UserError, match="its attention, 'mine', is none of transformers' own"):
        anchorprune.prune(model, "tome", r=3)


# Towers in other modules.


class Around(nn.Module):
    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(inner)

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([encode(encoder, images) for encoder in self.encoders], dim=1)


@pytest.mark.parametrize("library", ["timm ViT", "transformers CLIP", "OpenAI's clip", "timm Eva, rotary"])
@torch.no_grad()
def test_the_one_tower_in_a_module_around_it_is_found(library: str, images: Tensor) -> None:
    inner = LIBRARIES[library]()
    with anchorprune.prune(inner, "tome", r=3):
        expected = encode(inner, images)
    model = Around(inner)
    with anchorprune.prune(model, "tome", r=3) as pruning:
        assert torch.equal(model(images), expected)
        assert pruning.where.startswith("encoders.0")
        assert f"tower {pruning.where}" in repr(pruning)
        with pytest.raises(UserError, match="already pruned"):
            anchorprune.prune(inner, "tome", r=3)
    anchorprune.prune(model, "tome", r=3)
    anchorprune.restore(model)
    assert not torch.equal(model(images), expected)


@pytest.mark.parametrize(("kind", "where"), [("ViT", "vit"), ("DeiT", "deit"), ("Dinov2", "dinov2")])
@every_kind
@torch.no_grad()
def test_a_classifier_of_transformers_is_its_tower_and_a_head(
    kind: str, where: str, strategy: str, images: Tensor
) -> None:
    sizes = {name: value for name, value in VISION.items() if kind != "Dinov2" or name != "intermediate_size"}
    config = getattr(transformers, f"{kind}Config")(**sizes, num_labels=5)
    model = lively(getattr(transformers, f"{kind}ForImageClassification")(config))
    dense = model(images).logits
    tower = getattr(model, where)
    with anchorprune.prune(tower, strategy, **SMALL[strategy]):
        tokens = tower(images).last_hidden_state
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        pruned = model(images).logits
    assert pruning.where == where
    read = tokens[:, 0]
    if kind == "Dinov2":  # whose classifier averages the patches itself, and knows of no sizes
        read = torch.cat([read, tokens[:, 1:].mean(dim=1)], dim=1)
    torch.testing.assert_close(pruned, model.classifier(read))
    assert torch.equal(model(images).logits, dense)


def test_of_two_towers_both_are_named() -> None:
    with pytest.raises(
        UserError, match=r"2 image towers, VisionTransformer at encoders.0(.visual)? and Eva at encoders.1"
    ):
        anchorprune.prune(Around(make_clip(), timm_eva()), "tome", r=3)


def test_a_module_without_a_tower_says_so() -> None:
    with pytest.raises(UserError, match=r"Around: it is no image tower .* and has none in it"):
        anchorprune.prune(Around(nn.Linear(2, 2)), "tome", r=3)
