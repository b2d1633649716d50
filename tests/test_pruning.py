"""What always holds of a pruned model, for every strategy."""

from __future__ import annotations

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from support.models import LAYERS, TOKENS, make_clip, make_visual
from support.strategies import COVERING, SMALL, across, every_kind, every_strategy, promised
from torch import nn

import anchorprune
from anchorprune import UserError
from anchorprune.errors import FieldError
from anchorprune.pruning.budget import solve
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies import make_strategy, registry, standalone


def make_custom_visual(**options: object) -> nn.Module:
    return make_visual(block_type="custom", **options)


TOWERS = {
    "plain": make_visual,
    "custom blocks": make_custom_visual,
    "q/k norm": lambda: make_visual(qk_norm=True),
    "average pooling": lambda: make_visual(pool_type="avg", final_ln_after_pool=True),
    "CoCa pooler": lambda: make_visual(attentional_pool=True, attn_pooler_heads=4, output_dim=16),
}
across_towers = pytest.mark.parametrize(("tower", "strategy"), across(TOWERS))


def test_every_strategy_has_budgets_here() -> None:
    assert set(SMALL) == set(COVERING) == set(standalone())


@across_towers
@torch.no_grad()
def test_a_pruned_model_keeps_as_many_tokens_as_promised(strategy: str, tower: str, images: torch.Tensor) -> None:
    model = TOWERS[tower]()
    dense = model(images)
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        pruned = model(images)
    assert (pruning.tokens_before, pruning.tokens_after) == (TOKENS, promised(strategy))
    assert pruning.effective
    assert pruning.tokens_by_block[-1] == promised(strategy)
    assert pruning.kept.shape == (len(images), promised(strategy))
    assert (pruning.kept[:, 0] == 0).all()
    assert (pruning.kept.diff(dim=1) > 0).all()
    assert pruned.shape == dense.shape
    assert not torch.allclose(pruned, dense)


@across_towers
@torch.no_grad()
def test_a_budget_that_covers_all_tokens_changes_no_bit(strategy: str, tower: str, images: torch.Tensor) -> None:
    model = TOWERS[tower]()
    dense = model(images)
    with pytest.warns(UserWarning, match=r"keeps all 17 tokens .* nothing is dropped; \w+=\d+.* would prune"):
        pruning = anchorprune.prune(model, strategy, **COVERING[strategy])
    assert not pruning.effective
    assert torch.equal(model(images), dense)
    assert pruning.kept.tolist() == [list(range(TOKENS))] * len(images)
    assert pruning.tokens_before == pruning.tokens_after == TOKENS
    assert not pruning.effective


@every_strategy
def test_the_warning_names_a_budget_that_does_prune(strategy: str, visual: nn.Module) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        anchorprune.prune(visual, strategy, **COVERING[strategy]).restore()
    (warning,) = caught
    text = str(warning.message).split("; ")[1].removesuffix(" would prune")
    others = {k: v for k, v in COVERING[strategy].items() if k not in registry()[strategy].budget_fields}
    assert anchorprune.prune(visual, strategy, **(others | eval(f"dict({text})"))).effective
    typed = warning.message.typed.split("; ")[1].removesuffix(" would prune")  # what the command line says
    assert typed == " ".join(f"--{name} {value}" for name, value in (one.split("=") for one in text.split(", ")))


@across_towers
@torch.no_grad()
def test_restoring_is_exact(strategy: str, tower: str, images: torch.Tensor) -> None:
    model = TOWERS[tower]()
    keys, dense = list(model.state_dict()), model(images)

    pruning = anchorprune.prune(model, strategy, **SMALL[strategy])
    assert list(model.state_dict()) == keys
    model(images)
    pruning.restore()
    assert torch.equal(model(images), dense)

    pruning = anchorprune.prune(model, strategy, **SMALL[strategy])
    pruning()  # the description's restore function
    pruning()  # again does nothing
    assert torch.equal(model(images), dense)

    def fail(module: nn.Module, args: tuple) -> None:
        raise ZeroDivisionError

    failing = model.transformer.resblocks[2].register_forward_pre_hook(fail)  # in the middle of a forward pass
    with pytest.raises(ZeroDivisionError), anchorprune.prune(model, strategy, **SMALL[strategy]):
        model(images)
    failing.remove()
    assert torch.equal(model(images), dense)
    assert not any(block._forward_pre_hooks or block._forward_hooks for block in model.modules())


@torch.no_grad()
def test_the_blocks_from_prune_layer_on_see_fewer_tokens(visual: nn.Module, images: torch.Tensor) -> None:
    for prune_layer in range(2, LAYERS + 1):
        seen: list[int] = []

        def look(module: nn.Module, args: tuple, out: torch.Tensor, seen: list[int] = seen) -> None:
            seen.append(out.shape[1])

        hooks = [block.register_forward_hook(look) for block in visual.transformer.resblocks]
        with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4, prune_layer=prune_layer):
            visual(images)
        for hook in hooks:
            hook.remove()
        assert seen == [TOKENS] * (prune_layer - 1) + [7] * (LAYERS - prune_layer + 1)


@torch.no_grad()
def test_pruning_equals_running_the_blocks_by_hand_on_the_selected_tokens(
    visual: nn.Module, images: torch.Tensor
) -> None:
    blocks = visual.transformer.resblocks
    x = blocks[0](visual._embeds(images))
    block, heads = blocks[1], blocks[1].attn.num_heads
    weights = {}  # q and k of the block's own input, from the attention's own projection
    qkv = nn.functional.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias)
    for name, part in zip("qkv", qkv.chunk(3, dim=-1), strict=True):
        weights[name] = part.unflatten(-1, (heads, -1)).transpose(1, 2)
    kept = anchorprune.select_tokens_by_pruning(x, weights["q"], weights["k"], k_anchors=2, top_m=4, alpha=0.3)
    x = torch.stack([x[i, kept[i]] for i in range(len(x))])
    for later in blocks[1:]:
        x = later(x)
    by_hand = visual._pool(x)[0] @ visual.proj

    with anchorprune.apply_pruning_to_model(visual, k_anchors=2, top_m=4, alpha=0.3) as pruning:
        assert torch.equal(visual(images), by_hand)
    assert torch.equal(pruning.kept, kept)


@across_towers
@torch.no_grad()
def test_reordering_a_batch_reorders_its_outputs(strategy: str, tower: str, images: torch.Tensor) -> None:
    model = TOWERS[tower]()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        together, kept = model(images), pruning.kept
        torch.testing.assert_close(model(images[order]), together[order])
        assert torch.equal(pruning.kept, kept[order])


@across_towers
@torch.no_grad()
def test_one_image_alone_gives_what_it_gives_in_a_batch_of_64(strategy: str, tower: str) -> None:
    model = TOWERS[tower]()
    images = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    with anchorprune.prune(model, strategy, **SMALL[strategy]):
        together = model(images)
        alone = torch.cat([model(image.unsqueeze(0)) for image in images])
    torch.testing.assert_close(alone, together)


@torch.no_grad()
def test_first_image_takes_the_first_images_choice_for_all(visual: nn.Module, images: torch.Tensor) -> None:
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4) as pruning:
        visual(images[:1])
        first = pruning.kept
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4, selection="first_image") as pruning:
        visual(images)
    assert torch.equal(pruning.kept, first.expand(len(images), -1))


@torch.no_grad()
def test_random_draws_one_subset_by_its_seed(visual: nn.Module, images: torch.Tensor) -> None:
    drawn = []
    for seed in (0, 0, 1):
        with anchorprune.prune(visual, "random", keep_patches=6, draw_seed=seed) as pruning:
            visual(images)
        assert (pruning.kept == pruning.kept[0]).all()
        drawn.append(pruning.kept[0].tolist())
    assert drawn[0] == drawn[1] != drawn[2]


@every_strategy
def test_it_works_under_inference_mode_and_autocast(strategy: str, images: torch.Tensor) -> None:
    model = make_visual()
    with anchorprune.prune(model, strategy, **SMALL[strategy]) as pruning:
        with torch.inference_mode():
            exact = model(images)
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            rough = model(images)
    assert pruning.tokens_after == promised(strategy)
    assert rough.dtype == torch.bfloat16
    assert nn.functional.cosine_similarity(rough.float(), exact, dim=-1).mean() > 0.8


@torch.no_grad()
def test_it_works_on_bfloat16_weights(visual: nn.Module, images: torch.Tensor) -> None:
    model = visual.bfloat16()
    with anchorprune.prune(model, "anchor", k_anchors=2, top_m=4) as pruning:
        assert model(images.bfloat16()).dtype == torch.bfloat16
    assert pruning.tokens_after == 7


@torch.no_grad()
def test_a_deep_copy_of_a_pruned_model_is_pruned_on_its_own(visual: nn.Module, images: torch.Tensor) -> None:
    dense = visual(images)
    pruning = anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4)
    pruned = visual(images)
    twin = copy.deepcopy(visual)
    pruning.restore()
    kept = pruning.kept
    assert torch.equal(visual(images), dense)
    assert torch.equal(twin(images), pruned)
    twin(images.flip(0))
    assert torch.equal(pruning.kept, kept)  # the copy has a record of its own
    with pytest.raises(UserError, match=r"already pruned.*anchorprune\.restore\(model\)"):
        anchorprune.prune(twin, "anchor", k_anchors=2, top_m=4)
    anchorprune.restore(twin)
    anchorprune.restore(twin)  # again does nothing
    assert torch.equal(twin(images), dense)


def test_gradients_flow_through_kept_tokens_and_through_no_others(visual: nn.Module, images: torch.Tensor) -> None:
    entering: list[torch.Tensor] = []

    def keep_grad(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        out.retain_grad()
        entering.append(out)

    hook = visual.transformer.resblocks[0].register_forward_hook(keep_grad)
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4) as pruning:
        visual(images).square().sum().backward()
    hook.remove()
    touched = entering[0].grad.abs().sum(-1) > 0
    expected = torch.zeros(len(images), TOKENS, dtype=torch.bool).scatter(1, pruning.kept, True)
    assert torch.equal(touched, expected)


def test_gradient_checkpointing_gives_the_same_gradients(images: torch.Tensor) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_visual()
        model.set_grad_checkpointing(checkpointing)
        with anchorprune.prune(model, "anchor", k_anchors=2, top_m=4):
            model(images).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@torch.no_grad()
def test_forward_intermediates_is_refused_while_tokens_are_missing(visual: nn.Module, images: torch.Tensor) -> None:
    dense = visual.forward_intermediates(images)["image_intermediates"]
    twin = copy.deepcopy(visual)
    with anchorprune.prune(twin, "random", keep_patches=4):  # 4 patches would pass for a grid of 2 × 2
        with pytest.raises(UserError, match=r"forward_intermediates needs the whole grid.*restore\(\)"):
            twin.forward_intermediates(images)
        copied = copy.deepcopy(twin)
    with pytest.raises(UserError, match="forward_intermediates"):
        copied.forward_intermediates(images)
    with pytest.warns(UserWarning, match="nothing is dropped"):
        pruning = anchorprune.prune(twin, "random", keep_patches=16)
    torch.testing.assert_close(twin.forward_intermediates(images)["image_intermediates"], dense, rtol=0, atol=0)
    pruning.restore()
    assert vars(twin).keys() == vars(visual).keys()


def test_a_whole_model_and_its_image_tower_alone_are_pruned_alike(images: torch.Tensor) -> None:
    model = make_clip()
    with torch.no_grad():
        with anchorprune.prune(model, "anchor", k_anchors=2, top_m=4):
            whole = model.encode_image(images)
        with anchorprune.prune(model.visual, "anchor", k_anchors=2, top_m=4):
            tower = model.encode_image(images)
    assert torch.equal(whole, tower)


@torch.no_grad()
def test_apply_pruning_to_model_with_pruning_off_leaves_the_model_alone(
    visual: nn.Module, images: torch.Tensor
) -> None:
    dense = visual(images)
    restore = anchorprune.apply_pruning_to_model(visual, enable_pruning=False, k_anchors=2, top_m=4)
    assert torch.equal(visual(images), dense)
    assert restore.kept is None
    assert not restore.effective
    assert restore.tokens_before is restore.tokens_after is restore.tokens_by_block is None
    assert restore.assignment is restore.kept_before(2) is restore.size_bias(2) is None
    assert restore.first_block == 0
    assert "restored" in repr(restore)
    with restore:
        assert torch.equal(visual(images), dense)
    restore()
    anchorprune.apply_pruning_to_model(nn.Linear(2, 2), enable_pruning=False)  # also one that cannot be pruned


# A budget from a cost.


@every_kind
def test_a_target_takes_the_place_of_a_budget(strategy: str, visual: nn.Module) -> None:
    cls = registry()[strategy]
    others = {name: value for name, value in SMALL[strategy].items() if name not in cls.budget_fields}
    dense = image_tower_flops(visual) / 2e9
    by_name = anchorprune.prune(visual, strategy, target_gmacs=0.8 * dense, **others)
    assert image_tower_flops(visual) / 2e9 <= 0.8 * dense
    by_name.restore()
    assert by_name.strategy == solve(visual, make_strategy(strategy, **others), 0.8 * dense)
    with anchorprune.prune(visual, make_strategy(strategy, **others), target_gmacs=0.8 * dense) as by_object:
        assert by_object.strategy == by_name.strategy
    for given in ((strategy, SMALL[strategy]), (make_strategy(strategy, **SMALL[strategy]), {})):
        with pytest.raises(FieldError, match=r"target_gmacs=\S+: give it or \w+, not both") as error:
            anchorprune.prune(visual, given[0], target_gmacs=0.8 * dense, **given[1])
        assert "give it or --" in error.value.as_flag()


def test_a_target_that_no_budget_meets_is_told_in_pythons_words_or_in_flags(visual: nn.Module) -> None:
    with pytest.raises(FieldError, match=r"thin gets down to \S+ here \(keep_patches=1\); give a larger") as error:
        anchorprune.prune(visual, "thin", target_gmacs=1e-7)
    assert "(--keep_patches 1)" in error.value.as_flag()
    with pytest.raises(FieldError, match=r"tome gets down to \S+ here \(r=8\)") as error:  # which is its default
        anchorprune.prune(visual, "tome", target_gmacs=1e-7)
    assert "(--r 8)" in error.value.as_flag()


def test_pruning_twice_is_one_clear_error(clip: nn.Module) -> None:
    with anchorprune.prune(clip, "random", keep_patches=3):
        for model in (clip, clip.visual):
            with pytest.raises(UserError, match=r"already pruned \(Random\(.*call restore\(\)"):
                anchorprune.prune(model, "anchor", k_anchors=2, top_m=4)
    anchorprune.prune(clip, "anchor", k_anchors=2, top_m=4).restore()


def test_pruning_that_fails_leaves_the_model_as_it_was(
    clip: nn.Module, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has a handle then: with warnings as errors, or interrupted as torch throws compiled code away."""
    before = clip.encode_image(images)
    with pytest.raises(UserWarning, match="nothing is dropped"):
        anchorprune.prune(clip, "anchor", **COVERING["anchor"])
    monkeypatch.setattr("anchorprune.pruning.injection.forget_compiled_code", lambda: 1 / 0)
    cascade = anchorprune.Cascade(stages=("coarse --keep_patches 6", "unpruned"))
    for strategy in (make_strategy("coarse", keep_patches=6), cascade):
        with pytest.raises(ZeroDivisionError):
            anchorprune.prune(clip, strategy)
    assert torch.equal(clip.encode_image(images), before)
    monkeypatch.undo()
    with anchorprune.prune(clip, "coarse", keep_patches=6) as pruning:
        clip.encode_image(images)
    assert pruning.tokens_after == 7


@pytest.mark.parametrize("prune_layer", [-1, 0, 1, LAYERS + 1])
def test_prune_layer_may_be_2_to_the_number_of_blocks(visual: nn.Module, prune_layer: int) -> None:
    with pytest.raises(UserError, match=f"prune_layer={prune_layer}"):
        anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4, prune_layer=prune_layer)


@pytest.mark.parametrize(
    ("strategy", "fields", "says"),
    [
        ("ancor", {}, "unknown strategy 'ancor'.*Did you mean 'anchor'"),
        ("random", {"top_m": 5}, "top_m=5: strategy 'random' has no such field; it has .*keep_patches"),
        ("anchor", {"k_anchors": 2.5}, "k_anchors=2.5: must be a whole number"),
        ("anchor", {"top_m": True}, "top_m=True: must be a whole number"),
        ("anchor", {"alpha": "0.5"}, "alpha='0.5': must be a number"),
        ("anchor", {"alpha": None}, "alpha=None: must be a number"),
        ("random", {"keep_patches": 0}, "keep_patches=0: must be 1 or more"),
        ("anchor", {"selection": "batch"}, "selection='batch': choose one of per_image, first_image"),
    ],
)
def test_a_wrong_strategy_or_field_is_named(visual: nn.Module, strategy: str, fields: dict, says: str) -> None:
    with pytest.raises(UserError, match=says):
        anchorprune.prune(visual, strategy, **fields)


def test_numbers_of_any_kind_make_equal_strategies() -> None:
    plain = anchorprune.strategies.make_strategy("anchor", k_anchors=2, alpha=1.0)
    assert anchorprune.strategies.make_strategy("anchor", k_anchors=np.int64(2), alpha=1) == plain
    assert json.dumps(plain.as_dict())


def test_a_strategy_object_serves_as_well_as_its_name(visual: nn.Module, images: torch.Tensor) -> None:
    strategy = anchorprune.strategies.make_strategy("anchor", k_anchors=2, top_m=4)
    with torch.no_grad(), anchorprune.prune(visual, strategy) as pruning:
        visual(images)
    assert pruning.tokens_after == 7
    with pytest.raises(UserError, match="top_m"):
        anchorprune.prune(visual, strategy, top_m=4)
