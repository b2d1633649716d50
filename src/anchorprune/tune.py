"""`anchorprune tune`: the pruning that an accuracy or a speed allows, found on a part of the user's own data."""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import partial
from statistics import fmean, variance

from anchorprune.budget import dense_gmacs
from anchorprune.datasets import open_dataset
from anchorprune.datasets.sampling import choose
from anchorprune.errors import FieldError
from anchorprune.report.stats import Z95
from anchorprune.runs import check, check_tower, say, source_of
from anchorprune.strategies import RECOMMENDED
from anchorprune.sweep import UNPRUNED, Way, evaluate_ways, share_right, single_run, ways_of

# The recommended strategy, the same with less of a coarser grid for what is small in the image, and merging.
SEARCHED = (RECOMMENDED, "coarse --grid_share 0.25", "tome")
# Of the unpruned tower's cost: what the search tries for each strategy.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35)


@dataclass(frozen=True)
class Candidate:
    """A way, and what it lost on the images of the search and on those that the search did not see."""

    way: Way
    speed_up: float
    drop: float  # points, on the images of the search
    unseen: tuple[float, ...]  # points lost on each image that the search did not see


def run_tune(args: argparse.Namespace) -> None:
    """Search, and print the flags to use with what to expect of them.

    The calibration part is cut in two: on one half the way is chosen, on the other its loss is estimated, because the
    best of many looks better on the images that it was chosen by than it is.

    Raises:
        UserError: something in the input is wrong.
    """
    if not 0 < args.calibration <= 1:
        raise FieldError("calibration", args.calibration, "must be above 0 and at most 1")
    if args.max_drop is not None and not args.max_drop >= 0:
        raise FieldError("max_drop", args.max_drop, "must be 0 or more (points of acc1)")
    if args.target_speedup is not None and not args.target_speedup > 1:
        raise FieldError("target_speedup", args.target_speedup, "must be above 1")
    run = single_run(args)
    check(args, [run], None)
    dense = dense_gmacs(args.model_type, run.model)
    targets = [dense * share for share in SHARES]
    ways = [
        UNPRUNED,
        *ways_of(args.strategies or SEARCHED, targets, partial(check_tower, args.model_type, run.model)),
    ]

    keys = open_dataset(run.dataset, transform=lambda image: image, **source_of(args, run)).keys
    chosen = choose(keys, args.limit, args.seed)
    count = max(2, round(args.calibration * len(chosen)))
    part = choose([keys[i] for i in chosen], count, args.seed + 1)  # another seed: not the same order again
    say(args, f"{len(ways) - 1} ways of pruning on {len(part)} of {len(chosen)} images")
    found = evaluate_ways(args, run, ways, [chosen[i] for i in part])

    right = [share_right(of_way) for of_way in found]
    speed = [fmean(one.result["cost"]["images_per_second"] for one in of_way) for of_way in found]
    seen = range(0, len(right[0]), 2)
    unseen = range(1, len(right[0]), 2)
    candidates = [
        Candidate(
            way,
            speed[i] / speed[0],
            100 * (fmean(right[0][j] for j in seen) - fmean(right[i][j] for j in seen)),
            tuple(100 * (right[0][j] - right[i][j]) for j in unseen),
        )
        for i, way in enumerate(ways)
    ][1:]
    best = pick(candidates, args.max_drop, args.target_speedup)
    print(advice(best, len(chosen) - len(part), len(part), args.max_drop, args.target_speedup))


def pick(candidates: list[Candidate], max_drop: float | None, target_speedup: float | None) -> Candidate | None:
    """The fastest that loses at most `max_drop`, or the one that loses least of those that are fast enough."""
    if max_drop is not None:
        allowed = [one for one in candidates if one.drop <= max_drop]
        return max(allowed, key=lambda one: (one.speed_up, -one.drop), default=None)
    assert target_speedup is not None
    allowed = [one for one in candidates if one.speed_up >= target_speedup]
    return min(allowed, key=lambda one: (one.drop, -one.speed_up), default=None)


def expected(losses: tuple[float, ...], rest: int) -> tuple[float, float, float]:
    """The loss to expect on `rest` other images of the same kind, with its 95 % prediction interval, in points.

    Normal approximation; the interval has the spread of the images it was estimated on and of those to come.
    """
    n = len(losses)
    mean = fmean(losses)
    spread = math.sqrt(variance(losses) * (1 / n + (1 / rest if rest else 0))) if n > 1 else math.inf
    return mean, mean - Z95 * spread, mean + Z95 * spread


def advice(best: Candidate | None, rest: int, used: int, max_drop: float | None, target_speedup: float | None) -> str:
    """What to type and what to expect of it."""
    if best is None:
        what = f"loses at most {max_drop:g} points" if max_drop is not None else f"is {target_speedup:g} × as fast"
        return f"None of the ways tried {what} on these {used} images. Prune less, or allow more with the same command."
    loss, low, high = expected(best.unseen, rest)
    lines = [
        f"--enable_pruning --strategy {best.way.name} {best.way.flags}".rstrip(),
        "",
        f"{best.speed_up:.2f} × the unpruned encoder's speed on this machine.",
        f"Expect to lose {loss:.1f} points of acc1 on the {rest or 'next'} images that it was not tuned on, "
        f"95 % interval {low:.1f} to {high:.1f}",
        f"(from {len(best.unseen)} images that the search did not choose by; on those it did, {best.drop:.1f}).",
    ]
    if max_drop is not None and high > max_drop:
        lines.append(
            f"The interval reaches beyond {max_drop:g} points: more images, or a smaller --max_drop, make it surer."
        )
    return "\n".join(lines)
