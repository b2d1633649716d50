"""A coarser grid of patches: the tower sees a smaller image, and everything else is as it was."""

from __future__ import annotations

import copy
from fractions import Fraction
from typing import Any

import open_clip
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.libraries import LIBRARIES, encode, hf_dinov2, hf_vision, timm_eva, timm_vit
from support.models import LAYERS, PATCH, TOKENS, make_visual
from torch import Tensor
from torchvision.transforms.v2.functional import InterpolationMode, resize

import anchorprune
from anchorprune import UserError
from anchorprune.pruning.grid import as_plan, coarser
from anchorprune.strategies import make_strategy
from anchorprune.towers.positions import resample_positions

grids = st.tuples(st.integers(1, 12), st.integers(1, 12))


class Whole(torch.nn.Module):
    """What open_clip's own resizing of positional embeddings takes for a model."""

    def __init__(self, visual: torch.nn.Module, grid: tuple[int, int]) -> None:
        super().__init__()
        self.visual = visual
        self.visual.grid_size = grid


@pytest.mark.parametrize("size", [24, 16, 8])
@torch.no_grad()
def test_a_coarser_grid_alone_is_the_tower_that_open_clip_builds_for_smaller_images(size: int, images: Tensor) -> None:
    visual = make_visual()
    built = make_visual(image_size=size)
    state = {f"visual.{name}": value for name, value in visual.state_dict().items()}
    open_clip.model.resize_pos_embed(state, Whole(built, (size // PATCH, size // PATCH)))
    built.load_state_dict({name.removeprefix("visual."): value for name, value in state.items()})
    expected = built(resize(images, [size, size], InterpolationMode.BICUBIC, antialias=True))

    with anchorprune.prune(visual, "coarse", keep_patches=(size // PATCH) ** 2, grid_share=1) as pruning:
        torch.testing.assert_close(visual(images), expected, rtol=1e-4, atol=1e-5)
    assert pruning.tokens_by_block == [1 + (size // PATCH) ** 2] * LAYERS


@torch.no_grad()
def test_no_share_for_the_grid_and_none_for_the_second_half_is_thin(images: Tensor) -> None:
    visual = make_visual()
    with anchorprune.prune(visual, "thin", keep_patches=6) as thin:
        expected = visual(images)
    with anchorprune.prune(visual, "coarse", keep_patches=6, grid_share=0, late_share=0) as coarse:
        assert torch.equal(visual(images), expected)
    assert torch.equal(coarse.kept, thin.kept)


def test_the_grid_the_first_half_and_the_second_share_the_way() -> None:
    strategy = make_strategy("coarse", keep_patches=49, grid_share=0.5, late_share=0.5)
    first, second = {2: 91, 3: 85, 4: 79, 5: 74, 6: 69}, {7: 64, 8: 60, 9: 56, 10: 52, 11: 49}
    assert strategy.schedule(196, 12) == {0: 98, **first, **second}  # 69 = 98 · √(49/98)
    assert make_strategy("coarse", keep_ratio=0.25, grid_share=0.5, late_share=0.5).schedule(196, 12) == {
        0: 98,
        **first,
        **second,
    }
    several = make_strategy("coarse", keep_patches=(100, 49), prune_layers=(2, 6), grid_share=0.5)
    assert several.schedule(196, 12) == {0: 100, 2: 100, 6: 49}  # the grid leaves what block 2 is to let through
    assert make_strategy("coarse", keep_patches=300).schedule(196, 12) == {0: 196, **dict.fromkeys(range(2, 12), 196)}


@pytest.mark.parametrize("layers", [(2, 3), (8, 9)])
def test_blocks_of_one_half_alone_take_all_that_the_grid_leaves(layers: tuple[int, int]) -> None:
    strategy = make_strategy("coarse", keep_patches=49, grid_share=0.5, prune_layers=layers)
    assert strategy.schedule(196, 12) == {0: 98, layers[0]: 69, layers[1]: 49}


@given(st.integers(1, 300), st.integers(2, 30), st.floats(0, 1), st.floats(0, 1), st.integers(1, 300))
def test_a_larger_budget_is_larger_everywhere(
    patches: int, blocks: int, grid_share: float, late_share: float, keep: int
) -> None:
    smaller, larger = (
        make_strategy("coarse", keep_patches=count, grid_share=grid_share, late_share=late_share).schedule(
            patches, blocks
        )
        for count in (keep, keep + 1)
    )
    assert list(smaller) == list(larger)
    assert all(smaller[block] <= larger[block] for block in smaller)  # so that --target_gmacs can be solved by halving
    assert list(smaller.values()) == sorted(smaller.values(), reverse=True)
    assert list(smaller.values())[-1] == min(keep, patches)


@torch.no_grad()
def test_the_budget_is_kept_to_the_patch_where_no_grid_has_as_many(images: Tensor) -> None:
    visual = make_visual()
    for keep in range(1, TOKENS - 1):
        with anchorprune.prune(visual, "coarse", keep_patches=keep, grid_share=1) as pruning:
            visual(images)
        assert pruning.tokens_after == 1 + keep
        rows, columns = coarser((4, 4), keep)
        assert pruning.tokens_by_block[0] == 1 + rows * columns


@given(grids, st.integers(1, 144))
def test_the_coarser_grid_is_the_smallest_that_has_enough_patches_and_the_same_shape(
    grid: tuple[int, int], count: int
) -> None:
    rows, columns = found = coarser(grid, count)
    if count >= grid[0] * grid[1]:
        assert found == grid
        return
    assert rows * columns >= count
    # The same shape up to one row or column: half as tall is half as wide.
    assert min(abs(Fraction(rows * grid[1], grid[0]) - columns), abs(Fraction(columns * grid[0], grid[1]) - rows)) <= 1
    smaller = [
        (r, c)
        for r in range(1, grid[0] + 1)
        for c in range(1, grid[1] + 1)
        if count <= r * c < rows * columns
        and abs(Fraction(r, grid[0]) - Fraction(c, grid[1])) <= Fraction(1, min(grid))
    ]
    assert not smaller


@given(grids, st.data(), st.integers(0, 3))
def test_each_of_the_images_own_tokens_goes_where_its_centre_lies(
    old: tuple[int, int], data: st.DataObject, prefix: int
) -> None:
    new = data.draw(st.tuples(st.integers(1, old[0]), st.integers(1, old[1])))
    plan = as_plan(old, new, prefix, 2, torch.device("cpu"))
    keep, merged, into = (one[1].tolist() for one in (plan.keep, plan.merged, plan.into))
    assert keep == sorted(set(keep))
    assert keep[:prefix] == list(range(prefix))
    assert len(keep) == prefix + new[0] * new[1]
    assert sorted(keep + merged) == list(range(prefix + old[0] * old[1]))

    def cell(token: int) -> tuple[int, int]:
        """The new patch that the centre of an old one lies in."""
        row, column = divmod(token - prefix, old[1])
        return (
            int((row + Fraction(1, 2)) * Fraction(new[0], old[0])),
            int((column + Fraction(1, 2)) * Fraction(new[1], old[1])),
        )

    assert [cell(token) for token in keep[prefix:]] == [(r, c) for r in range(new[0]) for c in range(new[1])]
    assert [cell(token) for token in merged] == [cell(token) for token in into]


def test_positions_on_their_own_grid_stay_what_they_are() -> None:
    embedding = torch.randn(1 + 12, 5)
    torch.testing.assert_close(resample_positions(embedding, (3, 4), (3, 4)), embedding)
    half = embedding.to(torch.bfloat16)
    assert resample_positions(half, (3, 4), (2, 3)).dtype == torch.bfloat16


@torch.no_grad()
def test_weights_that_are_loaded_into_a_pruned_tower_count(images: Tensor) -> None:
    visual, other = make_visual(), make_visual()
    for parameter in other.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    with anchorprune.prune(other, "coarse", keep_patches=6):
        expected = other(images)
    with anchorprune.prune(visual, "coarse", keep_patches=6):
        before = visual(images)
        visual.load_state_dict(other.state_dict())
        assert torch.equal(visual(images), expected)
    assert not torch.allclose(before, expected)


@pytest.mark.parametrize("library", ["transformers CLIP", "timm ViT", "timm Eva, rotary", "OpenAI's clip"])
@torch.no_grad()
def test_a_copy_of_a_tower_on_a_coarser_grid_is_its_own(library: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    dense = encode(model, images)
    with anchorprune.prune(model, "coarse", keep_patches=6):
        pruned = encode(model, images)
        copied = copy.deepcopy(model)
        for parameter in model.parameters():
            parameter.mul_(1.5)
        assert torch.equal(encode(copied, images), pruned)
    anchorprune.restore(copied)
    assert torch.equal(encode(copied, images), dense)


@pytest.mark.parametrize("library", ["transformers CLIP, vision alone", "timm Eva, rotary", "timm ViT"])
@torch.no_grad()
def test_other_libraries_towers_compile_into_one_graph_too(library: str, images: Tensor) -> None:
    model = LIBRARIES[library]()
    torch._dynamo.reset()
    with anchorprune.prune(model, "coarse", keep_patches=6):
        expected = encode(model, images)
        torch.testing.assert_close(encode(torch.compile(model, backend="eager", fullgraph=True), images), expected)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: timm_eva(dynamic_img_size=True), {}),
        (lambda: timm_eva(num_reg_tokens=4, rope_type="dinov3", use_abs_pos_emb=False, dynamic_img_size=True), {}),
        (lambda: timm_vit(dynamic_img_size=True), {}),
        (hf_vision, {"interpolate_pos_encoding": True}),
    ],
    ids=["timm Eva, rotary", "timm Eva, registers", "timm ViT", "transformers CLIP"],
)
@torch.no_grad()
def test_a_tower_that_takes_any_size_shrinks_each_image_from_its_own(make: Any, options: dict) -> None:
    model, larger = make(), torch.randn(2, 3, 48, 48)  # 6 × 6 patches; the tower's own are 4 × 4
    with anchorprune.prune(model, "coarse", keep_patches=6, grid_share=0.5, late_share=0.5) as pruning:
        model(larger, **options)
    prefix = pruning.tokens_before - 36
    # 36 · (6/36)^0.5 = 14.7, a grid of 4 × 4; then 6 · √(15/6) = 9.5 and 6.
    assert pruning.tokens_by_block == [prefix + 16, prefix + 9, *[prefix + 6] * (LAYERS - 2)]


@torch.no_grad()
def test_images_in_half_precision(images: Tensor) -> None:
    visual = make_visual().to(torch.bfloat16)
    with anchorprune.prune(visual, "coarse", keep_patches=6) as pruning:
        assert visual(images.to(torch.bfloat16)).dtype == torch.bfloat16
    assert pruning.tokens_after == 7


@pytest.mark.parametrize("field", ["grid_share", "late_share"])
@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_that_is_none_is_refused(field: str, share: float) -> None:
    with pytest.raises(UserError, match=rf"{field}=.* must lie between 0 and 1"):
        anchorprune.prune(make_visual(), "coarse", **{field: share})


# Images of another size.

OF_ONE_SIZE = ["open_clip", "timm ViT", "timm Eva, rotary", "transformers CLIP", "transformers SigLIP", "OpenAI's clip"]


@pytest.mark.parametrize("size", [(64, 64), (38, 24), (16, 16)])
@pytest.mark.parametrize("library", OF_ONE_SIZE)
@torch.no_grad()
def test_a_size_that_the_tower_refuses_is_refused_on_a_coarser_grid_too(library: str, size: tuple[int, int]) -> None:
    model = make_visual() if library == "open_clip" else LIBRARIES[library]()
    images = torch.randn(2, 3, *size)
    with pytest.raises((AssertionError, RuntimeError, ValueError)):  # as each library does it
        encode(model, images)
    with (
        anchorprune.prune(model, "coarse", keep_patches=6),
        pytest.raises(UserError, match=rf"images of {size[0]} × {size[1]} pixels: this tower takes 32 × 32"),
    ):
        encode(model, images)


@pytest.mark.parametrize(
    "make", [lambda: timm_vit(dynamic_img_size=True), lambda: timm_eva(dynamic_img_size=True)], ids=["ViT", "Eva"]
)
@torch.no_grad()
def test_a_tower_of_any_size_refuses_what_makes_no_whole_patches(make: Any) -> None:
    model = make()
    with pytest.raises(AssertionError):
        model(torch.randn(2, 3, 36, 36))
    with anchorprune.prune(model, "coarse", keep_patches=6), pytest.raises(UserError, match="images of 36 × 36"):
        model(torch.randn(2, 3, 36, 36))


@torch.no_grad()
def test_patches_that_timm_fills_up_count(images: Tensor) -> None:
    model = timm_vit(dynamic_img_size=True, dynamic_img_pad=True)
    with anchorprune.prune(model, "coarse", keep_patches=6) as pruning:
        model(torch.randn(2, 3, 36, 36))
    assert pruning.tokens_before == 1 + 5 * 5


@pytest.mark.parametrize("registers", [0, 4])
@torch.no_grad()
def test_dinov2_takes_any_size_as_it_does_unpruned(registers: int) -> None:
    model = hf_dinov2(registers=registers)
    with anchorprune.prune(model, "coarse", keep_patches=6) as pruning:
        model(torch.randn(2, 3, 48, 40))
    assert pruning.tokens_before == 1 + registers + 6 * 5
    assert pruning.tokens_after == 1 + registers + 6
