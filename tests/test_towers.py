"""What can be pruned, and in which words the rest is refused."""

from __future__ import annotations

import pytest
import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from support.models import make_visual
from torch import Tensor, nn

import anchorprune
from anchorprune import UserError
from anchorprune.pruning.cost import image_tower_flops


def timm_tower(name: str) -> TimmModel:
    with torch.device("meta"):
        return TimmModel(name, embed_dim=16, pool="avg", proj="linear", pretrained=False)


def timm_model(name: str) -> nn.Module:
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize(
    ("tower", "says"),
    [
        (lambda: ModifiedResNet([1, 1, 1, 1], 16, 4, image_size=32, width=8), "it is a ResNet"),
        (lambda: timm_tower("convnext_atto"), "ConvNeXt of timm: it is convolutional"),
        (lambda: timm_tower("resnet10t"), "ResNet of timm: it is convolutional"),
        (lambda: timm_tower("swin_tiny_patch4_window7_224"), "SwinTransformer of timm: it attends within windows"),
        (lambda: timm_tower("vit_small_patch16_18x2_224"), "of timm: its blocks, .* are of a kind"),
        (lambda: timm_tower("vit_relpos_small_patch16_224"), "RelPos of timm: its attention adds a bias of its own"),
        (lambda: timm_tower("beit_base_patch16_224"), "Beit of timm: its attention adds a bias of its own"),
        (lambda: timm_model("naflexvit_base_patch16_gap"), "NaFlexVit of timm: its patches come in any number"),
        (lambda: timm_model("cait_xxs24_224"), "Cait of timm: it is no plain vision transformer"),
        (lambda: nn.Linear(3, 4), "Linear: it is no image tower that anchorprune knows"),
    ],
)
def test_a_model_that_cannot_be_pruned_is_refused_with_the_reason(tower: object, says: str) -> None:
    with pytest.raises(UserError, match=says):
        anchorprune.prune(tower(), "random", keep_patches=3)


@torch.no_grad()
def test_tokens_first_blocks_give_the_same_as_batch_first_ones(images: Tensor) -> None:
    """open_clip up to 2.24 ran its blocks tokens-first."""
    visual, old = make_visual(), make_visual()
    old.transformer.batch_first = False
    for block in old.transformer.resblocks:
        block.attn.batch_first = False
    torch.testing.assert_close(old(images), visual(images))
    for fields in ({"k_anchors": 2, "top_m": 4}, {"k_anchors": 1, "top_m": 9, "prune_layer": 3}):
        with anchorprune.prune(visual, "anchor", **fields) as new_pruning:
            expected = visual(images)
        with anchorprune.prune(old, "anchor", **fields) as old_pruning:
            torch.testing.assert_close(old(images), expected)
            attention = anchorprune.get_vision_attention(old, images)
        assert torch.equal(old_pruning.kept, new_pruning.kept)
        assert attention[-1].shape[0] == len(images)


@torch.no_grad()
def test_the_tower_of_openais_own_package_is_pruned_too(images: Tensor) -> None:
    visual = make_visual()
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4):
        expected = visual(images)
    visual.input_resolution = 32  # as it says its size there
    del visual.image_size, visual.grid_size
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4) as pruning:
        assert torch.equal(visual(images), expected)
    assert pruning.tokens_before == 17


def test_cosine_attention_is_refused() -> None:
    with pytest.raises(UserError, match="cosine attention"):
        anchorprune.prune(make_visual(block_type="custom", scaled_cosine_attn=True), "random", keep_patches=3)


@torch.no_grad()
def test_patch_dropout_while_training_leaves_fewer_tokens_to_prune(images: Tensor) -> None:
    visual = make_visual(patch_dropout=0.5).train()
    with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=4) as pruning:
        visual(images)
    assert (pruning.tokens_before, pruning.tokens_after) == (9, 7)


def test_flops_are_those_of_the_published_vit_b_32() -> None:
    import open_clip

    model = open_clip.create_model("ViT-B-32", pretrained=None, device="meta")
    assert image_tower_flops(model) == 8_817_623_040  # of one 224 px image, 2 per multiply-add


def test_flops_of_the_described_defaults_are_those_in_the_documents() -> None:
    import open_clip

    model = open_clip.create_model("ViT-B-16", pretrained=None, device="meta")
    gmacs = {None: image_tower_flops(model) / 2e9}
    for prune_layer in (2, 6):
        with anchorprune.apply_pruning_to_model(model, prune_layer=prune_layer):
            gmacs[prune_layer] = image_tower_flops(model) / 2e9
    assert {layer: round(value, 1) for layer, value in gmacs.items()} == {None: 17.6, 2: 6.6, 6: 10.7}
    assert gmacs[None] / gmacs[2] == pytest.approx(2.64, abs=0.005)


def by_hand(tokens: int, width: int, mlp: int) -> int:
    """FLOPs of one block at this many tokens: projections, two attention products, MLP."""
    return 2 * (4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp)


def test_flops_of_a_pruned_tower_are_those_of_the_tokens_that_ran_and_of_the_scoring(visual: nn.Module) -> None:
    width, mlp, n, k, patches, anchors = 32, 64, 17, 7, 16, 2
    dense = image_tower_flops(visual)
    with anchorprune.prune(visual, "random", keep_patches=6, prune_layers=3):
        pruned = image_tower_flops(visual)
    assert dense - pruned == 2 * (by_hand(n, width, mlp) - by_hand(k, width, mlp))
    with anchorprune.prune(visual, "anchor", k_anchors=anchors, top_m=4, prune_layer=3) as pruning:
        scored = image_tower_flops(visual)
        assert pruning.kept is None  # counting is no forward pass
    # q and k of all tokens, their products, those of CLS once more, and the patches against the anchors
    assert scored - pruned == 2 * (2 * n * width**2 + n**2 * width + n * width + patches * anchors * width)


def test_flops_never_rise_as_the_budget_falls(visual: nn.Module) -> None:
    costs = []
    for top_m in range(13, -1, -1):
        with anchorprune.prune(visual, "anchor", k_anchors=2, top_m=top_m):
            costs.append(image_tower_flops(visual))
    assert costs == sorted(costs, reverse=True)
    assert len(set(costs)) == len(costs)


def test_counting_flops_changes_nothing() -> None:
    visual = make_visual(patch_dropout=0.5).train()
    visual.transformer.resblocks[1].eval()
    modes = [module.training for module in visual.modules()]
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    assert image_tower_flops(visual) == image_tower_flops(make_visual())  # of all tokens
    assert [module.training for module in visual.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in visual.state_dict().items())
    assert all(value.device.type == "cpu" for value in visual.state_dict().values())
