"""What a tuning is asked for and what it found, in words and as files."""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.request import Request, plain
from anchorprune.evaluation.statistics import Z95, Difference, difference, predicted
from anchorprune.files import StrPath, output_folder, write_text
from anchorprune.strategies.base import Strategy
from anchorprune.studies.ways import Way


@dataclass(frozen=True)
class Candidate:
    """A way, and what it lost on the images of the search and on those that the search did not see.

    Attributes:
        drop: points lost on the images of the search; None where it was too slow for the goal to be tried on any.
        unseen: points lost on each image that the search did not see.
        milliseconds: that one batch takes; None where only the whole pass was timed.
    """

    way: Way
    speed_up: float
    drop: float | None
    unseen: tuple[float, ...]
    gmacs: float | None = None
    images_per_second: float | None = None
    milliseconds: float | None = None


@dataclass(frozen=True)
class Latency:
    """What the unpruned tower takes for a batch, and of what such times are."""

    unpruned_ms: float
    batch_size: int
    repeats: int
    where: str

    def __str__(self) -> str:
        images = "image" if self.batch_size == 1 else "images"
        return f"for a batch of {self.batch_size} {images}, median of {self.repeats} alternating repeats, {self.where}"


@dataclass(frozen=True)
class Goal:
    """What is allowed, one of three: points to lose, times as fast as unpruned, or milliseconds for a batch."""

    max_drop: float | None = None
    target_speedup: float | None = None
    max_latency_ms: float | None = None

    def check(self) -> None:
        """UserError for what is no goal."""
        if sum(value is not None for value in dataclasses.astuple(self)) != 1:
            raise UserError("tune: give one of max_drop, target_speedup and max_latency_ms")
        if self.max_drop is not None and not self.max_drop >= 0:
            raise FieldError("max_drop", self.max_drop, "must be 0 or more (points)")
        if self.target_speedup is not None and not self.target_speedup > 1:
            raise FieldError("target_speedup", self.target_speedup, "must be above 1")
        if self.max_latency_ms is not None and not self.max_latency_ms > 0:
            raise FieldError("max_latency_ms", self.max_latency_ms, "must be above 0 (milliseconds)")

    def pick(self, candidates: Sequence[Candidate]) -> Candidate | None:
        """The fastest that loses at most so much, or the one that loses least of those that are fast enough."""
        tried = [(one, one.drop) for one in candidates if one.drop is not None]
        if self.max_drop is not None:
            within = [(one, drop) for one, drop in tried if drop <= self.max_drop]
            return max(within, key=lambda pair: (pair[0].speed_up, -pair[1]), default=(None, 0.0))[0]
        fast = [(one, drop) for one, drop in tried if self.fast_enough(one)]
        return min(fast, key=lambda pair: (pair[1], -pair[0].speed_up), default=(None, 0.0))[0]

    def allows(self, latency: Latency | None) -> bool:
        """Whether the unpruned tower keeps the latency that is asked for."""
        return latency is not None and self.max_latency_ms is not None and latency.unpruned_ms <= self.max_latency_ms

    def fast_enough(self, one: Candidate) -> bool:
        if self.max_latency_ms is not None:
            return one.milliseconds is not None and one.milliseconds <= self.max_latency_ms
        return self.target_speedup is None or one.speed_up >= self.target_speedup

    def __str__(self) -> str:
        if self.max_drop is not None:
            return f"loses at most {self.max_drop:g} points"
        if self.target_speedup is not None:
            return f"is {self.target_speedup:g} × as fast"
        return f"takes at most {self.max_latency_ms:g} ms"


@dataclass(frozen=True)
class Tuned:
    """What `tune` found.

    Attributes:
        best: None where nothing that was tried meets the goal, or nothing has to be pruned for it.
        metric: what the points are of.
        used: images that were searched on and estimated by; 0 where times alone decided.
        rest: images of the data that were not used.
        goal: what was asked for.
        request: what was tuned, without a pruning.
        candidates: all that was searched.
        machine: what it was timed on, by name.
        latency: where that was the goal.
    """

    best: Candidate | None
    metric: str
    used: int
    rest: int
    goal: Goal
    request: Request
    candidates: Sequence[Candidate] = ()
    machine: Mapping[str, str] = field(default_factory=dict)
    latency: Latency | None = None

    @property
    def command(self) -> str | None:
        """The whole command that evaluates what was found; None where nothing was."""
        if self.strategy is None:
            return None
        return shlex.join(["anchorprune", "eval", *dataclasses.replace(self.request, pruning=self.strategy).flags()])

    @property
    def strategy(self) -> Strategy | None:
        """What to prune with."""
        return self.best.way.strategies[0] if self.best else None

    @property
    def expectation(self) -> tuple[float, float, float] | None:
        """The points to lose on the rest, with their 95 % prediction interval."""
        if self.best is None:
            return None
        found = expected(self.best.unseen, self.rest)
        return 100 * found.value, 100 * found.low, 100 * found.high

    def to_dict(self) -> dict[str, Any]:
        loss, low, high = self.expectation or (None, None, None)
        return {
            "strategy": self.strategy.as_dict() if self.strategy else None,
            "metric": self.metric,
            "speed_up": self.best.speed_up if self.best else None,
            "milliseconds": self.best.milliseconds if self.best else None,
            "loss": loss,
            "loss_low": low,
            "loss_high": high,
            "used": self.used,
            "rest": self.rest,
            **dataclasses.asdict(self.goal),
            "latency": dataclasses.asdict(self.latency) if self.latency else None,
            "command": self.command,
            "request": self.request.as_dict(),
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
                "milliseconds": one.milliseconds,
                "speed_up": one.speed_up,
                "drop": one.drop,
                "chosen": one is self.best,
            }
            for one in sorted(self.candidates, key=lambda one: one.speed_up)
        ]

    def save(self, folder: StrPath, command: str = "") -> None:
        """Write tune.json, tune.csv and report.html.

        Args:
            folder: made if it is not there.
            command: what to type to search again.
        """
        from anchorprune.report import tune_page
        from anchorprune.report.csv import csv_text

        timing = {"Milliseconds": str(self.latency)} if self.latency else {}
        page = tune_page.render(
            self.rows(),
            title=self._title,
            headline=self.headline,
            text=self.to_text(),
            found=self.command,
            facts={
                "Images": f"{self.used} searched on and estimated by, {self.rest} left",
                **self.machine,
                **timing,
            },
            command=command,
        )
        with output_folder("folder", folder) as out:
            write_text(json.dumps(plain(self.to_dict()), indent=2, allow_nan=False) + "\n", out / "tune.json")
            write_text(csv_text(self.rows()), out / "tune.csv")
            write_text(page, out / "report.html")

    @property
    def _title(self) -> str:
        model = self.request.model
        return f"{model.name} {model.pretrained} on {self.request.data.name}, {self.used} images"

    @property
    def headline(self) -> str:
        """What was found, in one line."""
        if self.best:
            way = f"{self.best.way.name} {self.best.way.flags}".rstrip()
            _, _, high = self.expectation or (0, 0, 0)
            if self.goal.max_drop is not None and high > self.goal.max_drop:
                return f"{way} may meet the goal: not certain on these images"
            return f"{way} meets the goal"
        if self.goal.allows(self.latency):
            return "The unpruned model meets the goal"
        return "Nothing that was tried meets the goal"

    def to_text(self) -> str:
        """What to type and what to expect of it."""
        best = self.best
        if best is None:
            return self._nothing()
        found = expected(best.unseen, self.rest)
        loss, low, high = (100 * share for share in (found.value, found.low, found.high))
        assert best.drop is not None
        lines = [
            f"--enable_pruning --strategy {best.way.name} {best.way.flags}".rstrip(),
            "",
            *self._speed(best),
            f"Expect to {_lose(loss)} of {self.metric} on the {self.rest or 'next'} images that it was not "
            f"tuned on; 95 % interval of the loss {low:.1f} to {high:.1f}",
            f"({found.method}; from {len(best.unseen)} images that the search did not choose by; on those it did, "
            f"{best.drop:.1f}).",
            *self._how_sure(high, len(best.unseen)),
        ]
        return "\n".join(lines)

    def _speed(self, best: Candidate) -> list[str]:
        if self.latency is None:
            return [f"{best.speed_up:.2f} × the unpruned encoder's speed on this machine."]
        return [
            f"{self._milliseconds(best)} ({best.speed_up:.2f} × the speed): the image tower",
            f"{self.latency}.",
        ]

    def _milliseconds(self, one: Candidate) -> str:
        assert self.latency is not None
        return f"{one.milliseconds:.2f} ms, unpruned {self.latency.unpruned_ms:.2f} ms"

    def _how_sure(self, high: float, n: int) -> list[str]:
        """What speaks against relying on it, where something does."""
        limit, lines = self.goal.max_drop, []
        if limit is not None and high > limit:
            lines.append(
                f"The interval reaches beyond {limit:g} points: more images, or a smaller --max_drop, make it surer."
            )
        least, finest = 100 * expected([0.0] * n, self.rest).high, limit or 1.0
        if least > finest:
            lines.append(
                f"So few images leave {least:.1f} points open even where none differs; "
                f"for {finest:g} it takes at least {images_for(finest / 100)} that the search does not choose by."
            )
        return lines

    def _nothing(self) -> str:
        """Why nothing is to be used."""
        if self.latency is None:
            return (
                f"None of the ways tried {self.goal} on these {self.used} images. "
                "Prune less, or allow more with the same command."
            )
        if self.goal.allows(self.latency):
            return (
                f"Nothing has to be pruned: the unpruned image tower takes {self.latency.unpruned_ms:.2f} ms\n"
                f"{self.latency}."
            )
        fastest = max(self.candidates, key=lambda one: one.speed_up)
        way = f"{fastest.way.name} {fastest.way.flags}".rstrip()
        return (
            f"None of the ways tried {self.goal}. The fastest is {way}:\n"
            f"{self._milliseconds(fastest)}: the image tower\n"
            f"{self.latency}."
        )


def _lose(points: float) -> str:
    return f"gain {-points:.1f} points" if round(points, 1) < 0 else f"lose {abs(points):.1f} points"


def images_for(share: float) -> int:
    """How many images vouch for losing no more than a share above 0, where none of them differs: by Wilson's limit."""
    return math.ceil(Z95**2 * (1 / share - 1))


def expected(losses: Sequence[float], rest: int) -> Difference:
    """The share to lose on `rest` other images of the same kind, with its 95 % prediction interval.

    Args:
        losses: points lost on each image that nothing was chosen by; one or more.
        rest: 0: as many as there may be.
    """
    lost = np.divide(losses, 100)
    return predicted(difference(lost, np.zeros(len(lost))), len(lost), rest)
