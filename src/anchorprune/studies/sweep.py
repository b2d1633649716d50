"""Many ways of pruning in one pass over the data, and which of them are worth their compute."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from anchorprune.evaluation import preflight
from anchorprune.evaluation.request import Request
from anchorprune.evaluation.result import Result, load
from anchorprune.evaluation.statistics import difference, mcnemar, wilson
from anchorprune.files import StrPath, output_folder, short_name, write_text
from anchorprune.models.base import LoadedModel
from anchorprune.progress import Reporting
from anchorprune.pruning.budget import solve
from anchorprune.report.frontier import Measured
from anchorprune.strategies import Wanted, standalone
from anchorprune.strategies.base import Strategy
from anchorprune.studies.ways import UNPRUNED, Way, evaluate_ways, mean_scores, ways_of

LONG = 150  # bytes of a file's name from which on it is cut short


@dataclass(frozen=True)
class Sweep:
    """What each way of pruning found, the unpruned model first.

    Attributes:
        request: what all ways have in common.
        ways: what was tried.
        results: of each way those of its draws.
    """

    request: Request
    ways: Sequence[Way]
    results: Sequence[Sequence[Result]]

    @property
    def points(self) -> list[Measured]:
        """What each way cost and kept, beside the unpruned model in the same pass."""
        return [_measured(way, found, self.results[0][0]) for way, found in zip(self.ways, self.results, strict=True)]

    def to_text(self, width: int | None = None) -> str:
        """A table, no wider than `width` columns, and the commands of the ways that no other beats."""
        from anchorprune.report.frontier import as_text

        return as_text(self.points, width)

    def to_dict(self) -> dict[str, Any]:
        """The request and the rows of the table."""
        from anchorprune.report.frontier import rows

        return {"request": self.request.as_dict(), "points": rows(self.points)}

    def to_csv(self) -> str:
        """The rows of the table as CSV."""
        from anchorprune.report.csv import csv_text
        from anchorprune.report.frontier import rows

        return csv_text(rows(self.points))

    def to_html(self, command: str = "") -> str:
        """A page with the charts, the table and the commands; offline, without scripts.

        Args:
            command: what to type to get this page.
        """
        from anchorprune.report import sweep_page

        facts = _facts([result for found in self.results for result in found])
        return sweep_page.render(self.points, title=self._title, facts=facts, command=command)

    def save(self, folder: StrPath, command: str = "") -> list[Path]:
        """Write a result for each draw of each way, with its outcomes, and sweep.csv, sweep.png and report.html.

        Args:
            folder: made if it is not there.
            command: what to type to sweep again.

        Returns:
            The files of the results.
        """
        results = [result for found in self.results for result in found]
        with output_folder("folder", folder) as out:
            files = [out / file_name(result.request.pruning) for result in results]
            for file, result in zip(files, results, strict=True):
                result.save(file)
            self.save_report(out, command)
        return files

    @classmethod
    def load(cls, folder: StrPath, request: Request, ways: Sequence[Way]) -> Sweep:
        """The sweep whose results are in a folder. UserError where one of them cannot be read."""
        files = [[Path(folder) / file_name(strategy) for strategy in way.strategies or (None,)] for way in ways]
        return cls(request, ways, [[load(file) for file in of_way] for of_way in files])

    def save_report(self, folder: StrPath, command: str = "") -> None:
        """Write sweep.csv, sweep.png and report.html alone."""
        from anchorprune.report.sweep_chart import write_png

        write_text(self.to_csv(), Path(folder) / "sweep.csv")
        write_png(self.points, Path(folder) / "sweep.png", self._title)
        write_text(self.to_html(command), Path(folder) / "report.html")

    @property
    def _title(self) -> str:
        model = self.request.model
        return f"{model.name} {model.pretrained} on {self.request.data.name}"


def sweep(
    request: Request,
    strategies: Sequence[str | Strategy | Wanted] | None = None,
    *,
    target_gmacs: Sequence[float] | None = None,
    model: LoadedModel | None = None,
    dataset: Any = None,
    progress: bool | Reporting = True,
) -> Sweep:
    """Evaluate many ways of pruning, and the unpruned model, in one pass.

    Args:
        request: without a pruning.
        strategies: names or strategies; None: every strategy that prunes a tower (all but `cascade`).
        target_gmacs: solve each strategy's budget for each of these; None: the budgets as they are.
        model, dataset: your own, as in `evaluate`.
        progress: a bar, where standard error is a terminal; or how else one wants to be told.

    Raises:
        UserError: something in the input is wrong. What can be known before the work starts is raised before it.
    """
    ways = plan(request, strategies, target_gmacs, model)
    results = evaluate_ways(request, ways, model=model, dataset=dataset, progress=progress)
    return Sweep(request, ways, results)


def plan(
    request: Request,
    strategies: Sequence[str | Strategy | Wanted] | None,
    target_gmacs: Sequence[float] | None,
    model: LoadedModel | None = None,
    *,
    here: bool = True,
) -> list[Way]:
    """The ways that a sweep tries, the unpruned one first; UserError for what is wrong before the work starts.

    Args:
        here: whether it is this machine that computes.
    """
    if model is None:
        preflight.check([request], here=here)
        solver = partial(preflight.solved, request.model)
    else:
        solver = partial(_solved, model)
    ways = ways_of(standalone() if strategies is None else strategies, target_gmacs, solver)
    for way in ways:
        way.requests(request)  # which the task may refuse
    return [UNPRUNED, *ways]


def _solved(model: LoadedModel, strategy: Strategy, target_gmacs: float | None) -> Strategy:
    return strategy if target_gmacs is None else solve(model.model, strategy, target_gmacs)


def file_name(strategy: Strategy | None) -> str:
    """What the result of this way is called in a sweep's folder."""
    name = f"{strategy.name} {strategy.flags()}" if strategy else "unpruned"
    return short_name(re.sub(r"[^\w.]+", "_", name.strip()).strip("_")) + ".json"


def _measured(way: Way, found: Sequence[Result], unpruned: Result) -> Measured:
    scores, dense = mean_scores(found), mean_scores([unpruned])
    accuracy = fmean(scores)
    low, high = wilson(accuracy, len(scores))
    against = difference(scores, dense) if way.strategies else None
    whole = all(score in (0, 1) for score in [*scores, *dense])
    return Measured(
        name=way.name,
        flags=way.flags,
        metric=found[0].request.task.primary,
        gmacs=found[0].cost["gmacs"],
        images_per_second=fmean(one.cost["images_per_second"] for one in found),
        accuracy=accuracy,
        low=low,
        high=high,
        difference=against.value if against else None,
        difference_low=against.low if against else None,
        difference_high=against.high if against else None,
        # Of draws, and of scores between right and wrong, there is no one pair of outcomes to test.
        p_value=mcnemar(scores, dense) if against and whole else None,
        draws=len(found),
        command=shlex.join(["anchorprune", "eval", *found[0].request.flags()]),
    )


def _facts(results: Sequence[Result]) -> dict[str, str]:
    """How it was measured, for the page."""
    first = results[0]
    # Results of one pass have these two times in common, to the last digit.
    waits = [one.cost["seconds"] for one in results]
    passes = len({(seconds["texts"], seconds["waiting_for_images"]) for seconds in waits})
    timing = (
        "all ways in turns, batch by batch, in one process; blocks that a way does not prune yet count with the time "
        "that the unpruned tower took for them"
    )
    if passes > 1:
        timing = f"in {passes} passes, at different times or places: speeds of different passes compare with care"
    return {
        "Images": f"{first.n_samples} of {first.n_total}, seed {first.request.data.seed}",
        **machine(results),
        "Timing": timing,
    }


def machine(results: Sequence[Result]) -> dict[str, str]:
    """What the results were computed on and by, for a page."""
    environment = results[0].environment
    names = dict.fromkeys(
        f"{of['device_name']} ({of['device']}, {of['threads']} threads)" for of in (one.environment for one in results)
    )
    return {
        "Machine": "; ".join(names),
        "Precision": environment["dtype"],
        "Batch size": str(results[0].request.compute.batch_size),
        "Versions": f"anchorprune {environment['anchorprune']}, torch {environment['torch']}, "
        f"open_clip {environment['open_clip']}",
    }
