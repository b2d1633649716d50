"""The pruning that an accuracy or a speed allows, found on a part of the user's own data."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, variance
from typing import Any

from anchorprune.datasets import open_dataset
from anchorprune.datasets.own import as_eval_dataset
from anchorprune.datasets.sampling import choose
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.preflight import dense_gmacs
from anchorprune.evaluation.request import Request, plain
from anchorprune.evaluation.statistics import Z95
from anchorprune.files import StrPath, write_text
from anchorprune.models.base import LoadedModel
from anchorprune.progress import Reporting
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies import RECOMMENDED, Wanted, make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.studies.sweep import machine, plan
from anchorprune.studies.ways import Way, evaluate_ways, mean_scores

# Of the unpruned tower's cost: what the search tries for each strategy.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.45, 0.4, 0.35)


def searched() -> list[Strategy]:
    """The recommended strategy, the same with less of a coarser grid for what is small in the image, and merging."""
    return [make_strategy(RECOMMENDED), make_strategy("coarse", grid_share=0.25), make_strategy("tome")]


@dataclass(frozen=True)
class Candidate:
    """A way, and what it lost on the images of the search and on those that the search did not see."""

    way: Way
    speed_up: float
    drop: float  # points, on the images of the search
    unseen: tuple[float, ...]  # points lost on each image that the search did not see
    gmacs: float | None = None
    images_per_second: float | None = None


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        best: None where nothing that was tried meets the goal.
        metric: what the points are of.
        used: images that were searched on and estimated by.
        rest: images of the data that were not used.
        request: what was tuned, without a pruning.
        machine: what it was timed on, by name.
        candidates: all that was searched.
    """

    best: Candidate | None
    metric: str
    used: int
    rest: int
    max_drop: float | None
    target_speedup: float | None
    request: Request | None = None
    candidates: Sequence[Candidate] = ()
    machine: Mapping[str, str] = field(default_factory=dict)

    @property
    def command(self) -> str | None:
        """The whole command that evaluates what was found; None where nothing was."""
        if self.request is None or self.strategy is None:
            return None
        return shlex.join(["anchorprune", "eval", *dataclasses.replace(self.request, pruning=self.strategy).flags()])

    @property
    def strategy(self) -> Strategy | None:
        """What to prune with."""
        return self.best.way.strategies[0] if self.best else None

    @property
    def expectation(self) -> tuple[float, float, float] | None:
        """The points to lose on the rest, with their 95 % prediction interval."""
        return expected(self.best.unseen, self.rest) if self.best else None

    def to_dict(self) -> dict[str, Any]:
        loss, low, high = self.expectation or (None, None, None)
        return {
            "strategy": self.strategy.as_dict() if self.strategy else None,
            "metric": self.metric,
            "speed_up": self.best.speed_up if self.best else None,
            "loss": loss,
            "loss_low": low,
            "loss_high": high,
            "used": self.used,
            "rest": self.rest,
            "max_drop": self.max_drop,
            "target_speedup": self.target_speedup,
            "command": self.command,
            "request": self.request.as_dict() if self.request else None,
            "searched": self.rows(),
        }

    def rows(self) -> list[dict[str, Any]]:
        """What was searched, the fastest last: of each way what it costs, and the points that it loses on the images of
        the search. What the others lose is kept back: nothing may be chosen by it."""
        return [
            {
                "strategy": one.way.name,
                "flags": one.way.flags,
                "gmacs": one.gmacs,
                "images_per_second": one.images_per_second,
                "speed_up": one.speed_up,
                "drop": one.drop,
                "chosen": one is self.best,
            }
            for one in sorted(self.candidates, key=lambda one: one.speed_up)
        ]

    def save(self, folder: StrPath, command: str = "") -> None:
        """Write tune.json, tune.csv and report.html.

        Args:
            command: what to type to search again.
        """
        from anchorprune.report import tune_page
        from anchorprune.report.csv import csv_text

        write_text(json.dumps(plain(self.to_dict()), indent=2, allow_nan=False) + "\n", Path(folder) / "tune.json")
        write_text(csv_text(self.rows()), Path(folder) / "tune.csv")
        page = tune_page.render(
            self.rows(),
            title=self._title,
            text=self.to_text(),
            found=self.command,
            facts={"Images": f"{self.used} searched on and estimated by, {self.rest} left", **self.machine},
            command=command,
        )
        write_text(page, Path(folder) / "report.html")

    @property
    def _title(self) -> str:
        assert self.request is not None
        model = self.request.model
        return f"{model.name} {model.pretrained} on {self.request.data.name}, {self.used} images"

    def to_text(self) -> str:
        """What to type and what to expect of it."""
        best, max_drop, target = self.best, self.max_drop, self.target_speedup
        if best is None or self.expectation is None:
            what = f"loses at most {max_drop:g} points" if max_drop is not None else f"is {target:g} × as fast"
            return (
                f"None of the ways tried {what} on these {self.used} images. "
                "Prune less, or allow more with the same command."
            )
        loss, low, high = self.expectation
        lines = [
            f"--enable_pruning --strategy {best.way.name} {best.way.flags}".rstrip(),
            "",
            f"{best.speed_up:.2f} × the unpruned encoder's speed on this machine.",
            f"Expect to lose {loss:.1f} points of {self.metric} on the {self.rest or 'next'} images that it was not "
            f"tuned on, 95 % interval {low:.1f} to {high:.1f}",
            f"(from {len(best.unseen)} images that the search did not choose by; on those it did, {best.drop:.1f}).",
        ]
        if max_drop is not None and high > max_drop:
            lines.append(
                f"The interval reaches beyond {max_drop:g} points: more images, or a smaller --max_drop, make it surer."
            )
        return "\n".join(lines)


def tune(
    request: Request,
    *,
    max_drop: float | None = None,
    target_speedup: float | None = None,
    strategies: Sequence[str | Strategy | Wanted] | None = None,
    calibration: float = 0.5,
    model: LoadedModel | None = None,
    dataset: Any = None,
    progress: bool | Reporting = True,
    say: Callable[[str], object] | None = None,
) -> Tuned:
    """The fastest pruning that loses at most `max_drop` points, or the best that is `target_speedup` times as fast.

    The calibration part of the data is cut in two: on one half the way is chosen, on the other its loss is estimated,
    because the best of many looks better on the images that it was chosen by than it is.

    Args:
        request: without a pruning.
        strategies: what to search, each at many budgets; None: `searched()`.
        calibration: share of the images to search on, 0 … 1; the expectation is for the rest.
        model, dataset: your own, as in `evaluate`.
        progress: a bar, where standard error is a terminal; or how else one wants to be told.
        say: is told in a line what is going to be searched.

    Raises:
        UserError: something in the input is wrong, or not one goal is given.
    """
    if (max_drop is None) == (target_speedup is None):
        raise UserError("tune: give either max_drop or target_speedup")
    if not 0 < calibration <= 1:
        raise FieldError("calibration", calibration, "must be above 0 and at most 1")
    if max_drop is not None and not max_drop >= 0:
        raise FieldError("max_drop", max_drop, "must be 0 or more (points)")
    if target_speedup is not None and not target_speedup > 1:
        raise FieldError("target_speedup", target_speedup, "must be above 1")
    dense = dense_gmacs(request.model) if model is None else image_tower_flops(model.model) / 2e9
    targets = [dense * share for share in SHARES]
    ways = plan(request, searched() if strategies is None else strategies, targets, model)
    keys = _keys(request, dataset)
    chosen = choose(keys, request.data.limit, request.data.seed)
    count = max(2, round(calibration * len(chosen)))
    part = choose([keys[i] for i in chosen], count, request.data.seed + 1)  # another seed: not the same order again
    if say:
        say(f"{len(ways) - 1} ways of pruning on {len(part)} of {len(chosen)} images")
    indices = [chosen[i] for i in part]
    found = evaluate_ways(request, ways, indices=indices, model=model, dataset=dataset, progress=progress)

    scores = [mean_scores(of_way) for of_way in found]
    speeds = [fmean(one.cost["images_per_second"] for one in of_way) for of_way in found]
    first = found[0][0].outcomes
    assert first is not None
    # Every second image is searched on, the others say what to expect; an image may have several scores.
    searched_on = [sample % 2 == 0 for sample in first.details.get("samples", range(len(first.keys)))]
    candidates = [
        dataclasses.replace(
            _candidate(way, speed / speeds[0], scores[0], own, searched_on),
            gmacs=of_way[0].cost["gmacs"],
            images_per_second=speed,
        )
        for way, speed, own, of_way in zip(ways[1:], speeds[1:], scores[1:], found[1:], strict=True)
    ]
    best, rest = pick(candidates, max_drop, target_speedup), len(chosen) - len(part)
    return Tuned(
        best, request.task.primary, len(part), rest, max_drop, target_speedup, request, candidates, machine(found[0])
    )


def _keys(request: Request, dataset: Any) -> Sequence[str]:
    if dataset is not None:
        return as_eval_dataset(dataset, request.data.name, _untouched, request.data.split).keys
    return open_dataset(request.data, _untouched, request.task.name).keys


def _untouched(image: Any) -> Any:
    return image


def _candidate(
    way: Way, speed_up: float, dense: Sequence[float], own: Sequence[float], searched_on: Sequence[bool]
) -> Candidate:
    losses = [100 * (a - b) for a, b in zip(dense, own, strict=True)]
    drop = fmean(loss for loss, used in zip(losses, searched_on, strict=True) if used)
    return Candidate(
        way, speed_up, drop, tuple(loss for loss, used in zip(losses, searched_on, strict=True) if not used)
    )


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
