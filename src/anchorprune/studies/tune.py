"""The pruning that an accuracy or a speed allows, found on a part of the user's own data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from anchorprune.datasets import open_dataset
from anchorprune.datasets.own import as_eval_dataset
from anchorprune.datasets.sampling import choose
from anchorprune.errors import FieldError
from anchorprune.evaluation.preflight import check_no_budget, dense_gmacs
from anchorprune.evaluation.request import Request
from anchorprune.models.base import LoadedModel
from anchorprune.progress import Reporting
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies import RECOMMENDED, Wanted, make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.studies.latency import time_until_fast_enough
from anchorprune.studies.sweep import machine, plan
from anchorprune.studies.tuned import Candidate, Goal, Tuned
from anchorprune.studies.ways import evaluate_ways, mean_scores

# Of the unpruned tower's cost: what the search tries for each strategy.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35)
# What it goes down to where a latency asks for it.
LOWER = (0.3, 0.25, 0.2, 0.15, 0.1)

# Images to choose by, and as many others to say what to expect: below, 11 points may be lost even where none of them
# differs (the 95 % limit of none in 30), and no advice is worth giving.
MINIMUM = 30


def searched() -> list[Strategy]:
    """The recommended strategy, the same with less of a coarser grid for what is small in the image, and merging."""
    return [make_strategy(RECOMMENDED), make_strategy("coarse", grid_share=0.25), make_strategy("tome")]


def tune(
    request: Request,
    *,
    max_drop: float | None = None,
    target_speedup: float | None = None,
    max_latency_ms: float | None = None,
    strategies: Sequence[str | Strategy | Wanted] | None = None,
    calibration: float = 0.5,
    model: LoadedModel | None = None,
    dataset: Any = None,
    progress: bool | Reporting = True,
    say: Callable[[str], object] | None = None,
) -> Tuned:
    """The pruning that one of three goals allows.

    The fastest that loses at most `max_drop` points, or the most accurate that is `target_speedup` times as fast as the
    unpruned model, or the most accurate whose image tower takes at most `max_latency_ms` milliseconds for a batch.

    The calibration part of the data is cut in two: on one half the way is chosen, on the other its loss is estimated,
    because the best of many looks better on the images that it was chosen by than it is.

    Args:
        request: without a pruning. The latency is the median for one batch of its `compute.batch_size`, of random
            images, on its device and in its precision, in alternating repeats (see `speed`).
        strategies: what to search, each at many budgets; None: `searched()`.
        calibration: share of the images to search on, 0 … 1; the expectation is for the rest.
        model, dataset: your own, as in `evaluate`.
        progress: a bar, where standard error is a terminal; or how else one wants to be told.
        say: is told in a line what is going to be searched.

    Raises:
        UserError: something in the input is wrong, not one goal is given, or there are fewer images than advice takes
            (`MINIMUM` to choose by, and as many to say what to expect).
    """
    goal = Goal(max_drop, target_speedup, max_latency_ms)
    goal.check()
    if not 0 < calibration <= 1:
        raise FieldError("calibration", calibration, "must be above 0 and at most 1")
    wanted: Sequence[str | Strategy | Wanted] = searched() if strategies is None else strategies
    for one in map(Wanted.of, wanted):
        check_no_budget(one.strategy, one.given, searched=True)
    dense = dense_gmacs(request.model) if model is None else image_tower_flops(model.model) / 2e9
    ways = plan(request, wanted, [dense * share for share in SHARES], model)
    keys = _keys(request, dataset)
    chosen = choose(keys, request.data.limit, request.data.seed)
    count = round(calibration * len(chosen))
    check_enough(request, len(keys), len(chosen), count, calibration)
    part = choose([keys[i] for i in chosen], count, request.data.seed + 1)  # another seed: not the same order again
    indices, rest = [chosen[i] for i in part], len(chosen) - len(part)

    timed = None
    if goal.max_latency_ms is not None:
        lower = [dense * share for share in LOWER]
        timed = time_until_fast_enough(request, ways[1:], goal, wanted, lower, model, say)
        ways = [ways[0], *(one.way for one in timed.candidates if goal.fast_enough(one))]
        if goal.allows(timed.latency) or len(ways) == 1:  # nothing to look at images for
            metric = request.task.primary
            return Tuned(None, metric, 0, len(chosen), goal, request, timed.candidates, {}, timed.latency)
    if say:
        say(f"{len(ways) - 1} way{'s' if len(ways) > 2 else ''} of pruning on {len(part)} of {len(chosen)} images")
    found = evaluate_ways(request, ways, indices=indices, model=model, dataset=dataset, progress=progress)

    scores = [mean_scores(of_way) for of_way in found]
    first = found[0][0].outcomes
    assert first is not None
    # Which image each score is of: there may be several of one.
    images = [int(image) for image in first.details.get("samples", range(len(first.keys)))]
    _check_enough_read(request, len(set(images)), len(part))
    if timed is None:
        speeds = [fmean(one.cost["images_per_second"] for one in of_way) for of_way in found]
        costs = [
            Candidate(way, speed / speeds[0], None, (), of_way[0].cost["gmacs"], speed)
            for way, speed, of_way in zip(ways[1:], speeds[1:], found[1:], strict=True)
        ]
        slow: list[Candidate] = []
    else:
        costs = [one for one in timed.candidates if goal.fast_enough(one)]
        slow = [one for one in timed.candidates if not goal.fast_enough(one)]
    tried = [_tried(one, scores[0], own, images) for one, own in zip(costs, scores[1:], strict=True)]
    latency = timed.latency if timed else None
    return Tuned(
        goal.pick(tried),
        request.task.primary,
        len(part),
        rest,
        goal,
        request,
        [*tried, *slow],
        machine(found[0]),
        latency,
    )


def check_enough(request: Request, total: int, chosen: int, count: int, calibration: float) -> None:
    """UserError for fewer images than advice takes, naming what to give more of.

    Args:
        total: images of the data.
        chosen: of them those that the limit leaves.
        count: of them those that the calibration share leaves.
    """
    least = 2 * MINIMUM
    if count >= least:
        return
    needed = f"tune needs {least}, {MINIMUM} to choose by and {MINIMUM} others to say what to expect"
    if chosen >= least:
        share = math.ceil(100 * least / chosen) / 100
        raise FieldError("calibration", calibration, f"is {count} of {chosen} images; {needed}: give {share:g} or more")
    if chosen < total:
        raise FieldError("limit", request.data.limit, f"is too few; {needed}")
    raise FieldError("dataset", request.data.name, f"has too few images, {total}; {needed}")


def _check_enough_read(request: Request, read: int, tried: int) -> None:
    """The same where some could not be read."""
    if read < 2 * MINIMUM:
        fix = f"only {read} of {tried} images can be read; tune needs {2 * MINIMUM}"
        raise FieldError("dataset", request.data.name, fix)


def _keys(request: Request, dataset: Any) -> Sequence[str]:
    if dataset is not None:
        return as_eval_dataset(dataset, request.data.name, _untouched, request.data.split).keys
    return open_dataset(request.data, _untouched, request.task.name).keys


def _untouched(image: Any) -> Any:
    return image


def _tried(one: Candidate, dense: Sequence[float], own: Sequence[float], images: Sequence[int]) -> Candidate:
    """The candidate with what it lost. Every second image is searched on, the others say what to expect.

    Args:
        dense, own: the scores, 0 … 1, of the unpruned model and of this way.
        images: which image each score is of.
    """
    losses = [100 * (a - b) for a, b in zip(dense, own, strict=True)]
    unseen: dict[int, list[float]] = {}
    for image, loss in zip(images, losses, strict=True):
        if image % 2:
            unseen.setdefault(image, []).append(loss)
    # One number an image, because the scores of one image are no independent trials; their mean is that of the scores.
    weight = len(unseen) / sum(map(len, unseen.values()))
    return dataclasses.replace(
        one,
        drop=fmean(loss for image, loss in zip(images, losses, strict=True) if image % 2 == 0),
        unseen=tuple(weight * sum(of_image) for of_image in unseen.values()),
    )
