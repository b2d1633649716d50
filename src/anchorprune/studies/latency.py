"""Which ways of pruning keep within a latency: each timed, in turns, as `speed` does it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anchorprune.errors import FieldError
from anchorprune.evaluation.request import Request
from anchorprune.models.base import LoadedModel
from anchorprune.strategies import Wanted
from anchorprune.strategies.base import Strategy
from anchorprune.studies.speed import speed
from anchorprune.studies.sweep import plan
from anchorprune.studies.tuned import Candidate, Goal, Latency
from anchorprune.studies.ways import Way

REPEATS = 11


@dataclass(frozen=True)
class Timed:
    """What was timed, before any image is looked at, and what of."""

    candidates: Sequence[Candidate]
    latency: Latency


def time_ways(
    request: Request,
    ways: Sequence[Way],
    model: LoadedModel | None = None,
    say: Callable[[str], object] | None = None,
) -> Timed:
    """The median milliseconds of one batch, of random images, for each way; of one that draws for one draw.

    Args:
        request: gives the batch size, the device, the precision and, where none is given, the model.
        ways: without the unpruned one, which is timed along with them.
        say: is told in a line what is going to be timed.
    """
    batch_size = request.compute.batch_size
    if say:
        say(f"timing {len(ways)} ways of pruning, {REPEATS} batches of {batch_size} each")
    found = speed(
        request.model if model is None else model,
        [way.strategies[0] for way in ways],
        batch_sizes=(batch_size,),
        repeats=REPEATS,
        compute=request.compute,
        seed=request.data.seed,
    )
    unpruned, *pruned = found.speeds
    of = found.environment
    where = f"{of['device_name']} ({of['device']}, {of['threads']} threads), {of['dtype']}"
    return Timed(
        [
            Candidate(way, one.speed_up, None, (), one.gmacs, one.images_per_second, one.p50)
            for way, one in zip(ways, pruned, strict=True)
        ],
        Latency(unpruned.p50, batch_size, REPEATS, where),
    )


def time_until_fast_enough(
    request: Request,
    ways: Sequence[Way],
    goal: Goal,
    strategies: Sequence[str | Strategy | Wanted],
    lower: Sequence[float],
    model: LoadedModel | None = None,
    say: Callable[[str], object] | None = None,
) -> Timed:
    """`time_ways`, and where neither the unpruned tower nor any of them keeps the goal, of lower budgets too.

    Args:
        strategies: those of the ways.
        lower: GMACs to go down to.
    """
    timed = time_ways(request, ways, model, say)
    if goal.allows(timed.latency) or any(map(goal.fast_enough, timed.candidates)):
        return timed
    try:
        further = plan(request, strategies, lower, model)[1:]
    except FieldError as error:
        if error.field != "target_gmacs":
            raise
        return timed  # none of them goes lower
    below = time_ways(request, further, model, say)
    return Timed([*timed.candidates, *below.candidates], below.latency)
