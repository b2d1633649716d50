"""`tune`: what it picks keeps its limit, and what it says to expect comes true as often as it says."""

from __future__ import annotations

import random
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anchorprune import UserError
from anchorprune.evaluation.request import DataSpec, ModelSpec, Request
from anchorprune.strategies import make_strategy
from anchorprune.studies.tune import Candidate, expected, pick, tune
from anchorprune.studies.ways import Way

REQUEST = Request(model=ModelSpec(name="m"), data=DataSpec(name="d"))


def candidate(r: int, speed_up: float, drop: float) -> Candidate:
    return Candidate(Way((make_strategy("tome", r=r),)), speed_up, drop, (drop,))


# From slow and exact to fast and bad.
FOUR = [candidate(1, 1.1, -0.5), candidate(2, 1.5, 0.8), candidate(3, 2.0, 1.2), candidate(4, 3.0, 9.0)]


@pytest.mark.parametrize(("limit", "r"), [(0, 1), (0.8, 2), (1.19, 2), (1.2, 3), (8.9, 3), (9, 4)])
def test_the_fastest_within_the_limit_is_picked(limit: float, r: int) -> None:
    assert pick(FOUR, limit, None) == FOUR[r - 1]


@pytest.mark.parametrize(("speed", "r"), [(1.01, 1), (1.2, 2), (1.5, 2), (1.6, 3), (2.5, 4)])
def test_the_one_that_loses_least_of_those_fast_enough_is_picked(speed: float, r: int) -> None:
    assert pick(FOUR, None, speed) == FOUR[r - 1]


def test_where_none_meets_the_goal_none_is_picked() -> None:
    assert pick(FOUR, -1.0, None) is None
    assert pick(FOUR, None, 3.1) is None


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(-5, 50)), max_size=8), st.floats(0, 20))
def test_nothing_allowed_is_faster_than_what_is_picked(ways: list[tuple[float, float]], limit: float) -> None:
    candidates = [candidate(i, *way) for i, way in enumerate(ways)]
    best = pick(candidates, limit, None)
    allowed = [one.speed_up for one in candidates if one.drop <= limit]
    assert (best is None) == (not allowed)
    assert best is None or (best.drop <= limit and best.speed_up == max(allowed))


@pytest.mark.parametrize(("seen", "rest", "lost", "gained"), [(200, 200, 0.05, 0.02), (100, 1000, 0.1, 0.1)])
def test_the_interval_holds_the_loss_on_other_images_as_often_as_it_says(
    seen: int, rest: int, lost: float, gained: float
) -> None:
    """Drawn images, of which shares are lost and gained; 95 % of 2,000 draws, give or take 1.5 %."""
    draw = random.Random(0)

    def losses(n: int) -> list[float]:
        return draw.choices([100.0, -100.0, 0.0], [lost, gained, 1 - lost - gained], k=n)

    held = 0
    for _ in range(2000):
        _, low, high = expected(tuple(losses(seen)), rest)
        held += low <= fmean(losses(rest)) <= high
    assert 0.935 <= held / 2000 <= 0.97


def test_one_goal_is_asked_for() -> None:
    for goals in ({}, {"max_drop": 1.0, "target_speedup": 2.0}):
        with pytest.raises(UserError, match="give either max_drop or target_speedup"):
            tune(REQUEST, **goals)
