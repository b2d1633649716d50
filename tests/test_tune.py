"""`tune`: what it picks keeps its goal, and what it says to expect comes true as often as it says."""

from __future__ import annotations

import dataclasses
import random
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.material import World, command, make_folder, read

from anchorprune import UserError
from anchorprune.evaluation.request import DataSpec, ModelSpec, Request
from anchorprune.evaluation.statistics import wilson
from anchorprune.strategies import make_strategy
from anchorprune.studies.tune import MINIMUM, check_enough, tune
from anchorprune.studies.tuned import Candidate, Goal, Latency, Tuned, expected, images_for
from anchorprune.studies.ways import Way

FLAGS = ["--no_amp", "--num_workers", 0, "--batch_size", 8, "--quiet"]

REQUEST = Request(model=ModelSpec(name="m"), data=DataSpec(name="d"))


def candidate(r: int, speed_up: float, drop: float) -> Candidate:
    return Candidate(Way((make_strategy("tome", r=r),)), speed_up, drop, (drop,))


# From slow and exact to fast and bad.
FOUR = [candidate(1, 1.1, -0.5), candidate(2, 1.5, 0.8), candidate(3, 2.0, 1.2), candidate(4, 3.0, 9.0)]


@pytest.mark.parametrize(("limit", "r"), [(0, 1), (0.8, 2), (1.19, 2), (1.2, 3), (8.9, 3), (9, 4)])
def test_the_fastest_within_the_limit_is_picked(limit: float, r: int) -> None:
    assert Goal(max_drop=limit).pick(FOUR) == FOUR[r - 1]


@pytest.mark.parametrize(("speed", "r"), [(1.01, 1), (1.2, 2), (1.5, 2), (1.6, 3), (2.5, 4)])
def test_the_one_that_loses_least_of_those_fast_enough_is_picked(speed: float, r: int) -> None:
    assert Goal(target_speedup=speed).pick(FOUR) == FOUR[r - 1]
    times = [dataclasses.replace(one, milliseconds=20 / one.speed_up) for one in FOUR]
    assert Goal(max_latency_ms=20 / speed).pick(times) == times[r - 1]


def test_where_none_meets_the_goal_none_is_picked() -> None:
    assert Goal(max_drop=-1.0).pick(FOUR) is None
    assert Goal(target_speedup=3.1).pick(FOUR) is None
    assert Goal(max_latency_ms=1000).pick(FOUR) is None  # of which no time is known


@given(st.lists(st.tuples(st.floats(0.5, 5), st.floats(-5, 50)), max_size=8), st.floats(0, 20))
def test_nothing_allowed_is_faster_than_what_is_picked(ways: list[tuple[float, float]], limit: float) -> None:
    candidates = [candidate(i, *way) for i, way in enumerate(ways)]
    best = Goal(max_drop=limit).pick(candidates)
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
        found = expected(losses(seen), rest)
        held += 100 * found.low <= fmean(losses(rest)) <= 100 * found.high
    assert 0.935 <= held / 2000 <= 0.97


def test_one_goal_is_asked_for() -> None:
    for goals in ({}, {"max_drop": 1.0, "target_speedup": 2.0}, {"max_drop": 1.0, "max_latency_ms": 2.0}):
        with pytest.raises(UserError, match="give one of max_drop, target_speedup and max_latency_ms"):
            tune(REQUEST, **goals)


# --- few images


def test_where_no_image_loses_the_expectation_still_has_a_width() -> None:
    """Of 25 images without a loss, Wilson's limit is 13.3 %; what 25 others lose may lie further off."""
    found = expected([0.0] * 25, 0)
    assert (found.value, found.low, found.high) == pytest.approx((0, -wilson(0, 25)[1], wilson(0, 25)[1]))
    assert expected([0.0] * 25, 25).high > 1.4 * found.high


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5])
def test_so_many_images_vouch_for_a_loss_and_one_fewer_does_not(share: float) -> None:
    n = images_for(share)
    assert expected([0.0] * n, 0).high <= share < expected([0.0] * (n - 1), 0).high


def tuned(losses: list[float], rest: int = 0, **goal: float) -> Tuned:
    best = dataclasses.replace(candidate(4, 1.5, 0.0), unseen=tuple(losses), milliseconds=8.0)
    latency = Latency(12.0, 1, 11, "a processor (cpu, 2 threads), float32") if "max_latency_ms" in goal else None
    return Tuned(best, "acc1", 2 * len(losses), rest, Goal(**goal), REQUEST, [best], latency=latency)


def test_it_says_how_wide_so_few_images_leave_it_and_how_many_are_enough() -> None:
    text = tuned([0.0] * 50, max_drop=1.0).to_text()
    assert "Expect to lose 0.0 points of acc1 on the next images" in text
    assert "95 % interval of the loss -7.1 to 7.1\n(Tango's score interval; from 50 images" in text  # 3.84 / 53.84
    assert "The interval reaches beyond 1 points" in text
    assert "So few images leave 7.1 points open even where none differs; for 1 it takes at least 381" in text
    assert "open" not in tuned([0.0] * 50, max_drop=10.0).to_text()
    assert "So few images leave 7.1 points open" in tuned([0.0] * 50, target_speedup=1.2).to_text()
    assert "open" not in tuned([0.0] * 400, max_drop=1.0).to_text()


def test_it_says_no_more_than_it_knows() -> None:
    assert tuned([0.0] * 50, max_drop=1.0).headline.endswith("may meet the goal: not certain on these images")
    assert tuned([0.0] * 400, max_drop=1.0).headline.endswith("meets the goal")
    assert "Expect to gain 20.0 points of acc1" in tuned([-100.0] * 10 + [0.0] * 40, max_drop=1.0).to_text()


def test_fewer_images_than_advice_takes_are_one_line(world: World, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchorprune.studies.tune.SHARES", (0.8,))
    goal = ["--max_drop", 1, "--strategies", "tome", "--limit", 1]
    outcome = command("tune", *world.model, *world.things, *FLAGS, *goal)
    assert outcome.code == 2
    needed = f"tune needs {2 * MINIMUM}, {MINIMUM} to choose by and {MINIMUM} others to say what to expect"
    assert outcome.err[-1] == f"anchorprune: error: --limit 1: is too few; {needed}"


@pytest.mark.parametrize(
    ("total", "limit", "calibration", "says"),
    [
        (59, None, 1.0, "dataset='d': has too few images, 59; tune needs 60"),
        (500, 59, 1.0, "limit=59: is too few; tune needs 60"),
        (500, 100, 0.5, "calibration=0.5: is 50 of 100 images; tune needs 60, .*: give 0.6 or more"),
        (117, None, 0.5, "calibration=0.5: is 58 of 117 images"),
        (120, None, 0.5, None),
        (60, None, 1.0, None),
    ],
)
def test_what_to_give_more_of_is_named(total: int, limit: int | None, calibration: float, says: str | None) -> None:
    request = dataclasses.replace(REQUEST, data=DataSpec(name="d", limit=limit))
    chosen = limit or total
    with pytest.raises(UserError, match=says) if says else nullcontext():
        check_enough(request, total, chosen, round(calibration * chosen), calibration)


def test_images_that_cannot_be_read_do_not_count(world: World, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anchorprune.studies.tune.MINIMUM", 5)
    monkeypatch.setattr("anchorprune.studies.tune.SHARES", (0.8,))
    folder = make_folder(here / "bad", classes=3, per_class=4)
    for path in sorted(folder.rglob("*.png"))[::3]:
        path.write_bytes(b"no image")
    goal = ["--max_drop", 1, "--strategies", "tome", "--calibration", 1, "--skip_bad_images"]
    outcome = command("tune", *world.model, "--dataset", f"folder:{folder}", *FLAGS, *goal)
    assert outcome.code == 2
    assert f"--dataset folder:{folder}: only 8 of 12 images can be read; tune needs 10" in outcome.err[-1]


# --- a latency


def clocked(monkeypatch: pytest.MonkeyPatch, *rounds: list[float]) -> None:
    """Times, in milliseconds, that the unpruned tower and each way are measured at, round by round."""
    left = list(rounds)

    def in_turns(works: list[object], device: object, repeats: int) -> list[list[float]]:
        times = left.pop(0)
        return [[times[min(i, len(times) - 1)] / 1000] * repeats for i in range(len(works))]

    monkeypatch.setattr("anchorprune.studies.speed.time_in_turns", in_turns)
    monkeypatch.setattr("anchorprune.studies.tune.SHARES", (0.9, 0.8, 0.7, 0.6)[: len(rounds[0]) - 1])
    monkeypatch.setattr("anchorprune.studies.tune.LOWER", (0.5, 0.4))


@pytest.mark.usefixtures("few_suffice", "here")
@pytest.mark.filterwarnings("ignore:other programs")
def test_a_latency_picks_the_most_accurate_of_those_that_keep_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    clocked(monkeypatch, [9.0, 8.0, 7.0, 5.0, 4.0])
    goal = ["--max_latency_ms", 5, "--strategies", "thin", "--out", "out"]
    outcome = command("tune", *world.model, *world.things, *FLAGS, *goal)
    assert outcome.code == 0, outcome.err
    found = read("out/tune.json")
    slow = [one for one in found["searched"] if one["milliseconds"] > 5]
    fast = [one for one in found["searched"] if one["milliseconds"] <= 5]
    assert [one["drop"] for one in slow] == [None, None]  # not tried on images
    [chosen] = [one for one in found["searched"] if one["chosen"]]
    assert (chosen["drop"], -chosen["speed_up"]) == min((one["drop"], -one["speed_up"]) for one in fast)
    assert found["milliseconds"] == chosen["milliseconds"]
    assert found["latency"]["unpruned_ms"] == pytest.approx(9)
    text = "\n".join(outcome.out)
    assert f"{chosen['milliseconds']:.2f} ms, unpruned 9.00 ms (" in text
    assert "for a batch of 8 images, median of 11 alternating repeats" in text
    assert "threads), float32." in text
    assert "ms a batch" in Path("out/report.html").read_text()


@pytest.mark.usefixtures("here")
@pytest.mark.filterwarnings("ignore:other programs")
def test_a_latency_that_nothing_keeps_says_the_fastest_there_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After lower budgets were tried too; images are not looked at."""
    monkeypatch.setattr("anchorprune.studies.tune.MINIMUM", 6)
    clocked(monkeypatch, [9.0, 8.0, 7.0], [9.0, 6.5])
    goal = ["--max_latency_ms", 5, "--strategies", "thin", "--out", "out"]
    outcome = command("tune", *world.model, *world.things, *FLAGS, *goal)
    assert outcome.code == 0, outcome.err
    said = "\n".join(outcome.out)
    assert "None of the ways tried takes at most 5 ms. The fastest is thin --keep_patches" in said
    assert "6.50 ms, unpruned 9.00 ms: the image tower" in said
    assert read("out/tune.json")["command"] is None
    assert "Nothing that was tried meets the goal" in Path("out/report.html").read_text()


@pytest.mark.usefixtures("few_suffice", "here")
@pytest.mark.filterwarnings("ignore:other programs")
def test_a_latency_that_the_unpruned_model_keeps_needs_no_pruning(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Timed for real."""
    monkeypatch.setattr("anchorprune.studies.tune.SHARES", (0.8,))
    goal = ["--max_latency_ms", 60_000, "--strategies", "tome", "--out", "out"]
    outcome = command("tune", *world.model, *world.things, *FLAGS, *goal)
    assert outcome.code == 0, outcome.err
    assert outcome.out[0].startswith("Nothing has to be pruned: the unpruned image tower takes ")
    assert "The unpruned model meets the goal" in Path("out/report.html").read_text()
