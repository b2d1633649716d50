"""The ways of pruning that a study tries: strategies, each with every budget asked for, and draws where they draw."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from anchorprune.errors import FieldError, FieldWarning, UserError
from anchorprune.evaluation.engine import evaluate
from anchorprune.evaluation.preflight import check_no_budget
from anchorprune.evaluation.request import Request
from anchorprune.evaluation.result import Result
from anchorprune.strategies import Wanted
from anchorprune.strategies.base import Strategy

DRAWS = 3  # of a strategy that draws: its accuracy is the mean


@dataclass(frozen=True)
class Way:
    """One way of pruning; several strategies where it is the mean over draws. No strategies: unpruned."""

    strategies: tuple[Strategy, ...]

    @property
    def name(self) -> str:
        return self.strategies[0].name if self.strategies else "unpruned"

    @property
    def flags(self) -> str:
        return self.strategies[0].flags() if self.strategies else ""

    def requests(self, request: Request) -> list[Request]:
        """One for each draw."""
        return [dataclasses.replace(request, pruning=strategy) for strategy in self.strategies or (None,)]


UNPRUNED = Way(())


def ways_of(
    wanted: Sequence[str | Strategy | Wanted],
    targets: Sequence[float] | None,
    solve: Callable[[Strategy, float | None], Strategy],
) -> list[Way]:
    """Each strategy with every budget that the targets ask for.

    Args:
        targets: GMACs; None: the budgets as they are.
        solve: gives the strategy with its budget for a target, or as it is for None; FieldError where it has none.

    Raises:
        UserError: a budget is given that a target solves, or no strategy can meet any target.
    """
    ways = []
    for what in map(Wanted.of, wanted):
        strategy, given = what.strategy, what.given
        if targets:
            check_no_budget(strategy, given)
        asked: Sequence[float | None] = targets or [None]
        for target in asked:
            try:
                solved = solve(strategy, target)
            except FieldError as error:
                if error.field != "target_gmacs":
                    raise
                said = f"{strategy.name} is left out at {target:g} GMACs"
                warnings.warn(FieldWarning(f"{said}: {error.fix}", f"{said}: {error.typed}"), stacklevel=2)
                continue
            seed, each = solved.seed_field, [solved]
            if seed is not None and seed not in given:
                each = [dataclasses.replace(solved, **{seed: i}) for i in range(DRAWS)]
            ways.append(Way(tuple(each)))
    if not ways:
        raise FieldError("target_gmacs", tuple(targets or ()), "no strategy can meet any of these")
    return list(dict.fromkeys(ways))  # two targets can have one budget


def evaluate_ways(request: Request, ways: Sequence[Way], **options: Any) -> list[list[Result]]:
    """What each draw of each way finds, all in one pass over the data; `options` are those of `evaluate`.

    Raises:
        UserError: also where the task has no score of each sample to compare by.
    """
    if request.pruning is not None:
        raise UserError("request.pruning: a study tries strategies of its own; leave it out")
    requests = [each for way in ways for each in way.requests(request)]
    found = iter(evaluate(requests, keep_scores=True, **options))
    return [[next(found) for _ in way.strategies or (None,)] for way in ways]


def mean_scores(found: Sequence[Result]) -> list[float]:
    """Each sample's score, mean over the draws."""
    scores = [one.outcomes.scores.tolist() for one in found if one.outcomes is not None]
    return [fmean(sample) for sample in zip(*scores, strict=True)]
