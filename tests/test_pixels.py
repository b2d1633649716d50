"""A strategy that goes by pixels sees those that the tower is given, patch by patch, before any block runs."""

from __future__ import annotations

import pytest
import torch
from support import naive_strategies as naive
from support.libraries import LIBRARIES, encode
from support.models import LAYERS, PATCH, TOKENS, make_visual
from torch import Tensor

import anchorprune
from anchorprune import UserError
from anchorprune.strategies import make_strategy
from anchorprune.towers import find_tower


@pytest.mark.parametrize("library", ["open_clip", *LIBRARIES])
@torch.no_grad()
def test_the_patches_whose_pixels_vary_most_are_all_that_the_first_block_sees(library: str, images: Tensor) -> None:
    model = make_visual() if library == "open_clip" else LIBRARIES[library]()
    tower = find_tower(model)
    patch = tower.image_size[0] // tower.grid[0]
    images = images * torch.linspace(0.2, 3, images.shape[3])  # so that not all patches vary alike
    with anchorprune.prune(model, "vwt_intra", keep_patches=6) as pruning:
        encode(model, images)
    expected = [naive.vwt_intra(image, patch, tower.num_prefix_tokens, 6).keep for image in images]
    assert pruning.kept.tolist() == expected
    assert pruning.tokens_by_block == [tower.num_prefix_tokens + 6] * len(tower.blocks)


@torch.no_grad()
def test_equal_patches_go_by_their_places(images: Tensor) -> None:
    visual = make_visual()
    one = torch.randn(3, PATCH, PATCH, generator=torch.Generator().manual_seed(0))
    with anchorprune.prune(visual, "vwt_intra", keep_patches=5) as pruning:
        visual(one.repeat(2, 1, 4, 4))
    assert pruning.kept.tolist() == [[0, 1, 2, 3, 4, 5]] * 2


def test_its_budget_is_a_count_or_a_share_of_the_patches() -> None:
    def schedule(**fields: object) -> dict[int, int]:
        return make_strategy("vwt_intra", **fields).schedule(196, 12)

    assert schedule() == {1: 60}
    assert schedule(keep_patches=98) == schedule(keep_ratio=0.5) == {1: 98}
    assert schedule(keep_patches=500) == {1: 196}
    assert schedule(keep_ratio=0.001) == {1: 1}
    budgets = make_strategy("vwt_intra", keep_ratio=0.5).budgets(TOKENS - 1, LAYERS)
    assert [budget.schedule(TOKENS - 1, LAYERS)[1] for budget in budgets] == list(range(TOKENS - 1, 0, -1))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"keep_patches": (9, 8)}, "keep_patches=(9, 8): give one number"),
        ({"keep_patches": 0}, "keep_patches=0: must be 1 or more"),
        ({"keep_ratio": 1.5}, "keep_ratio=1.5: must be above 0 and at most 1"),
        ({"keep_ratio": float("nan")}, "keep_ratio=nan: must be above 0 and at most 1"),
        ({"keep_patches": 9, "keep_ratio": 0.5}, "keep_ratio=0.5: give it or keep_patches, not both"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_in_one_line(fields: dict, says: str) -> None:
    with pytest.raises(UserError) as error:
        make_strategy("vwt_intra", **fields)
    assert str(error.value).startswith(says)
