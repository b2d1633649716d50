"""How a budget spreads over the blocks, and which budgets are refused."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorprune import UserError
from anchorprune.strategies import make_strategy, registry
from anchorprune.strategies.base import StepwiseStrategy
from anchorprune.strategies.tome import MergingStrategy

# Of `coarse` what it does to the tokens; its grid has tests of its own.
STEPWISE = sorted(name for name, cls in registry().items() if issubclass(cls, StepwiseStrategy))
MERGING = sorted(name for name, cls in registry().items() if issubclass(cls, MergingStrategy))
stepwise = pytest.mark.parametrize("strategy", STEPWISE)


def schedule(strategy: str = "max_min", patches: int = 196, blocks: int = 12, **fields: object) -> dict[int, int]:
    if strategy == "coarse":
        fields = {"grid_share": 0, "late_share": 2 / 3, **fields}
    found = make_strategy(strategy, **fields).schedule(patches, blocks)
    assert found.pop(0, patches) == patches
    return found


@stepwise
def test_one_number_goes_on_from_the_last_block_and_each_keeps_the_same_share(strategy: str) -> None:
    share = (60 / 196) ** (1 / 3)
    expected = {4: round(196 * share), 7: round(196 * share**2), 10: 60}
    assert schedule(strategy, prune_layers=(4, 7, 10), keep_patches=60) == expected == {4: 132, 7: 89, 10: 60}


@stepwise
def test_several_numbers_are_one_for_each_block(strategy: str) -> None:
    assert schedule(strategy, prune_layers=(2, 5), keep_patches=(100, 7)) == {2: 100, 5: 7}
    assert schedule(strategy, prune_layers=(2, 5), keep_patches=(9, 9)) == {2: 9, 5: 9}


@stepwise
def test_ratios_are_shares_of_all_the_patches_of_the_image(strategy: str) -> None:
    assert schedule(strategy, prune_layers=(2, 5), keep_ratio=(0.5, 0.25)) == {2: 98, 5: 49}
    assert schedule(strategy, prune_layers=(2, 5), keep_ratio=0.25) == {2: 98, 5: 49}  # half, and half of that
    assert schedule(strategy, prune_layers=2, keep_ratio=1.0) == {2: 196}
    assert schedule(strategy, prune_layers=2, keep_ratio=0.001) == {2: 1}  # one patch always goes on
    assert schedule(strategy, patches=49, prune_layers=2, keep_ratio=0.5) == {2: 24}


@stepwise
def test_sixty_patches_go_on_unless_told_otherwise(strategy: str) -> None:
    layers = make_strategy(strategy).layers(12)
    assert schedule(strategy)[layers[-1]] == 60
    assert schedule(strategy, patches=49) == dict.fromkeys(layers, 49)


def test_thin_acts_from_block_2_to_the_middle_of_the_tower() -> None:
    assert [make_strategy("thin").layers(blocks) for blocks in (12, 6, 4, 2)] == [(2, 3, 4, 5, 6), (2, 3), (2,), (2,)]


@given(
    patches=st.integers(1, 400),
    layers=st.sets(st.integers(2, 12), min_size=1, max_size=4).map(sorted),
    keep=st.integers(1, 500),
)
def test_a_spread_budget_never_rises_and_ends_at_its_number(patches: int, layers: list[int], keep: int) -> None:
    counts = schedule(patches=patches, prune_layers=tuple(layers), keep_patches=keep)
    assert list(counts) == layers
    assert list(counts.values()) == sorted(counts.values(), reverse=True)
    assert counts[layers[-1]] == min(keep, patches)
    assert all(1 <= count <= patches for count in counts.values())
    steps = [patches, *counts.values()]
    shares = [b - a * (min(keep, patches) / patches) ** (1 / len(layers)) for a, b in itertools.pairwise(steps)]
    assert all(abs(off) <= 1 for off in shares)  # by rounding alone


@stepwise
def test_the_budgets_go_from_all_patches_down_to_one(strategy: str) -> None:
    budgets = make_strategy(strategy, keep_ratio=0.5).budgets(9, 12)
    assert [min(budget.schedule(9, 12).values()) for budget in budgets] == list(range(9, 0, -1))
    assert {budget.prune_layers for budget in budgets} == {make_strategy(strategy).prune_layers}


def test_no_block_at_all_is_refused() -> None:
    with pytest.raises(UserError, match=r"prune_layers=\(\): give at least one block"):
        make_strategy("max_min", prune_layers=())


@stepwise
@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"prune_layers": 0}, "prune_layers=0: must be "),
        ({"prune_layers": (2, -1)}, "prune_layers=(2, -1): must be "),
        ({"prune_layers": (4, 3)}, "prune_layers=(4, 3): must ascend"),
        ({"prune_layers": (4, 4)}, "prune_layers=(4, 4): must ascend"),
        ({"prune_layers": (4, 5.5)}, "prune_layers=5.5: must be a whole number"),
        ({"prune_layers": "4"}, "prune_layers='4': must be a whole number"),
        ({"prune_layers": None}, "prune_layers=None: must be a whole number"),
        ({"keep_patches": 5, "keep_ratio": 0.5}, "keep_ratio=0.5: give it or keep_patches, not both"),
        (
            {"prune_layers": (2, 3), "keep_patches": (5, 4, 3)},
            "keep_patches=(5, 4, 3): give one number, or one for each",
        ),
        ({"prune_layers": 2, "keep_patches": (5, 4)}, "keep_patches=(5, 4): give one number, or one for each"),
        ({"prune_layers": (2, 3, 4), "keep_ratio": (0.5, 0.4)}, "keep_ratio=(0.5, 0.4): give one number, or one for"),
        ({"prune_layers": (2, 3), "keep_patches": (4, 5)}, "keep_patches=(4, 5): must not rise"),
        ({"prune_layers": (2, 3), "keep_ratio": (0.4, 0.5)}, "keep_ratio=(0.4, 0.5): must not rise"),
        ({"prune_layers": (2, 3), "keep_patches": (5, 0)}, "keep_patches=(5, 0): must be 1 or more"),
        ({"keep_patches": -5}, "keep_patches=-5: must be 1 or more"),
        ({"keep_patches": 2.5}, "keep_patches=2.5: must be a whole number"),
        ({"keep_patches": True}, "keep_patches=True: must be a whole number"),
        ({"keep_ratio": 0}, "keep_ratio=0.0: must be above 0 and at most 1"),
        ({"keep_ratio": 1.5}, "keep_ratio=1.5: must be above 0 and at most 1"),
        ({"keep_ratio": float("nan")}, "keep_ratio=nan: must be above 0 and at most 1"),
        ({"keep_ratio": "half"}, "keep_ratio='half': must be a number"),
    ],
)
def test_a_budget_that_cannot_be_is_refused_in_one_line_that_names_the_field(
    strategy: str, fields: dict, says: str
) -> None:
    with pytest.raises(UserError) as error:
        make_strategy(strategy, **fields)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)


def test_block_1_may_select_after_its_attention_but_not_at_its_input() -> None:
    for name in STEPWISE:
        if registry()[name].acts == "inside":
            assert schedule(name, prune_layers=1) == {1: 60}
        else:
            with pytest.raises(UserError, match="prune_layers=1: must be 2 or more: block 1 always sees every token"):
                make_strategy(name, prune_layers=1)


@pytest.mark.parametrize("strategy", MERGING)
def test_merging_takes_r_in_every_block_and_half_of_the_patches_at_most(strategy: str) -> None:
    assert schedule(strategy) == schedule(strategy, r=8)
    assert schedule(strategy, r=8) == {block: 196 - 8 * block for block in range(1, 13)}
    assert schedule(strategy, patches=49, blocks=4, r=30) == {1: 25, 2: 13, 3: 7, 4: 4}
    assert schedule(strategy, blocks=3, r=0) == {1: 196, 2: 196, 3: 196}
    assert [budget.r for budget in make_strategy(strategy).budgets(9, 12)] == [(0,), (1,), (2,), (3,), (4,)]


@pytest.mark.parametrize("strategy", MERGING)
def test_several_r_are_one_for_each_block_and_none_after_the_last(strategy: str) -> None:
    assert schedule(strategy, blocks=4, r=(16, 0, 4)) == {1: 180, 2: 180, 3: 176, 4: 176}
    assert schedule(strategy, patches=9, blocks=2, r=(9, 1)) == {1: 5, 2: 4}
    with pytest.raises(UserError, match=r"r=\(1, 2, 3\): gives 3 blocks a number; this tower has 2"):
        schedule(strategy, blocks=2, r=(1, 2, 3))


@pytest.mark.parametrize("strategy", MERGING)
def test_an_inflected_r_is_what_tomes_own_code_makes_of_it(strategy: str) -> None:
    # What `parse_r(12, (r, inflect))` of facebookresearch/ToMe gives.
    for r, inflect, amounts in [
        (8, -1, [16, 14, 13, 11, 10, 8, 7, 5, 4, 2, 1, 0]),
        (8, 1, [0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16]),
        (13, 0.5, [6, 7, 8, 9, 11, 12, 13, 14, 16, 17, 18, 20]),
    ]:
        assert list(make_strategy(strategy, r=r, r_inflect=inflect).amounts(12)) == amounts
    assert schedule(strategy, r=8, r_inflect=-1)[12] == 196 - 91
    assert list(make_strategy(strategy, r=3, r_inflect=-1).amounts(1)) == [6]


def test_a_ratio_is_the_share_of_a_blocks_patches_that_go_on_from_it() -> None:
    assert schedule("pitome", blocks=3, ratio=0.9) == {1: 196 - 19, 2: 177 - 17, 3: 160 - 16}  # rounded down
    assert schedule("pitome", blocks=3, ratio=(0.5, 1.0)) == {1: 98, 2: 98, 3: 98}
    assert schedule("pitome", patches=9, blocks=4, ratio=0.5) == {1: 5, 2: 3, 3: 2, 4: 1}
    assert [budget.ratio for budget in make_strategy("pitome", ratio=0.9).budgets(9, 12)] == [()] * 5
    with pytest.raises(UserError, match=r"ratio=\(0\.9, 0\.9\): gives 2 blocks a number; this tower has 1"):
        schedule("pitome", blocks=1, ratio=(0.9, 0.9))


@pytest.mark.parametrize(
    ("strategy", "fields", "says"),
    [
        *((name, {"r": -1}, "r=-1: must be 0") for name in MERGING),
        *((name, {"r": (2, -1)}, "r=(2, -1): must be 0") for name in MERGING),
        *((name, {"r": 1.5}, "r=1.5: must be a whole number") for name in MERGING),
        *((name, {"r_inflect": 1.5}, "r_inflect=1.5: must lie between -1") for name in MERGING),
        *((name, {"r_inflect": float("nan")}, "r_inflect=nan: must lie between -1") for name in MERGING),
        *((name, {"r": (2, 1), "r_inflect": 1}, "r_inflect=1.0: give one r with it") for name in MERGING),
        *((name, {"prop_attn": "no"}, "prop_attn='no': choose one of on, off") for name in MERGING),
        ("rapid_like", {"pruned_share": float("nan")}, "pruned_share=nan: must lie between 0 and 1"),
        ("rapid_like", {"cue_weight": -1}, "cue_weight=-1.0: must be 0 or more"),
        ("tofu", {"pruned_share": 1.5}, "pruned_share=1.5: must lie between 0 and 1"),
        ("token_transforming", {"share_temperature": 0}, "share_temperature=0.0: must be above 0"),
        ("token_transforming", {"share_temperature": float("nan")}, "share_temperature=nan: must be above 0"),
        ("tome", {"r": ()}, "r=(): give at least one number"),
        ("pitome", {"ratio": 0.4}, "ratio=0.4: must lie between 0.5"),
        ("pitome", {"ratio": (0.9, 1.1)}, "ratio=(0.9, 1.1): must lie between 0.5"),
        ("pitome", {"ratio": 0.9, "r": 8}, "ratio=0.9: give it or r, not both"),
        ("pitome", {"ratio": 0.9, "r_inflect": -1}, "ratio=0.9: give it or r, not both"),
        ("pitome", {"margin": 1.5}, "margin=1.5: must lie between -1 and 1"),
        ("zero_tprune", {"similar_share": 1.5}, "similar_share=1.5: must lie between 0 and 1"),
        ("zero_tprune", {"rank_rounds": (30, 5)}, "rank_rounds=(30, 5): give three numbers"),
        ("zero_tprune", {"rank_rounds": (30, 5, 0)}, "rank_rounds=(30, 5, 0): must be 1 or more"),
        ("zero_tprune", {"min_head_variance": -1}, "min_head_variance=-1.0: must be 0 or more"),
        (
            "zero_tprune",
            {"max_head_variance": 0.001},
            "max_head_variance=0.001: must not be below min_head_variance",
        ),
        ("pitome", {"unprotected_share": float("nan")}, "unprotected_share=nan: must lie between 0 and 1"),
    ],
)
def test_fields_of_one_strategy_that_cannot_be_are_refused_in_one_line(strategy: str, fields: dict, says: str) -> None:
    with pytest.raises(UserError) as error:
        make_strategy(strategy, **fields)
    assert str(error.value).startswith(says)
    assert "\n" not in str(error.value)
