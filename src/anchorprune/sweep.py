"""`anchorprune sweep`: many ways of pruning in one pass over the data, and which of them are worth their compute."""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from anchorprune import options, outcomes, results
from anchorprune.cli import Parser
from anchorprune.datasets import open_dataset
from anchorprune.errors import FieldError, UserError
from anchorprune.languages import set_language
from anchorprune.planning import Run, plan_runs
from anchorprune.report.stats import bootstrap_difference, mcnemar, wilson
from anchorprune.runs import (
    check,
    check_no_budget,
    check_tower,
    config_of,
    load,
    result_of,
    save_outcomes,
    say,
    settings_of,
    source_of,
)
from anchorprune.strategies import make_strategy, registry
from anchorprune.strategies.base import Strategy

if TYPE_CHECKING:
    from anchorprune.evaluate import Evaluation
    from anchorprune.report.frontier import Measured

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


UNPRUNED = Way(())


def run_sweep(args: argparse.Namespace) -> None:
    """Evaluate all ways that `args` (the parsed command line) asks for, and write the results to `args.out`.

    Raises:
        UserError: something in the input is wrong. What can be known before the work starts is raised before it.
    """
    run = single_run(args)
    check(args, [run], None)
    ways = [
        UNPRUNED,
        *ways_of(args.strategies or list(registry()), args.targets, partial(check_tower, args.model_type, run.model)),
    ]
    with results.folder("--out", args.out) as folder:
        for way in ways:
            say(args, f"{way.name} {way.flags}".rstrip())
        # Only now: everything above answers at once, this takes seconds to import.
        from anchorprune.report import png, sweep_page
        from anchorprune.report.frontier import as_text, rows

        found = evaluate_ways(args, run, ways)
        files = [write(args, run, one, folder) for of_way in found for one in of_way]
        points = [measured(args, run, way, of_way, found[0][0]) for way, of_way in zip(ways, found, strict=True)]
        results.write_csv(rows(points), folder / "sweep.csv")
        title = f"{run.model} {run.pretrained} on {run.dataset}"
        png.write_png(points, folder / "sweep.png", title)
        command = shlex.join(["anchorprune", "sweep", *args.argv])
        page = sweep_page.render(points, title=title, facts=facts(found[0][0].result), command=command)
        results.write_text(page, folder / "report.html")
        say(args, f"\n{as_text(points)}\n\n{len(files)} results, sweep.csv, sweep.png and report.html: {folder}")


def single_run(args: argparse.Namespace) -> Run:
    """The one evaluation that the command line describes. UserError for several models, data sets or languages."""
    runs = plan_runs(args)
    if len(runs) != 1:
        raise UserError(
            f"{args.which}: takes one model, one data set and one language at a time, and these are {len(runs)} "
            "combinations; run it for each"
        )
    return runs[0]


def ways_of(
    specs: Sequence[str], targets: Sequence[float] | None, solve: Callable[[Strategy, float | None], Any]
) -> list[Way]:
    """The ways that `--strategies` asks for, each with every budget that `--target_gmacs` asks for.

    Args:
        solve: gives the strategy with its budget for a target, or as it is for None; FieldError where it has none.
    """
    ways = []
    for spec in specs:
        name, *flags = shlex.split(spec) or [""]
        strategy, fields = parse_strategy(name, flags)
        if targets:
            check_no_budget(strategy, fields)
        asked: Sequence[float | None] = targets or [None]
        for target in asked:
            try:
                solved = solve(strategy, target)
            except FieldError as error:
                if error.field != "target_gmacs":
                    raise
                warnings.warn(f"{name} is left out at {target:g} GMACs: {error.fix}", stacklevel=2)
                continue
            draws = hasattr(solved, "draw_seed") and "draw_seed" not in fields
            each = [dataclasses.replace(solved, draw_seed=i) for i in range(DRAWS)] if draws else [solved]
            ways.append(Way(tuple(each)))
    if not ways:
        raise UserError("--target_gmacs: no strategy can meet any of these")
    return list(dict.fromkeys(ways))  # two targets can have one budget


def parse_strategy(name: str, flags: Sequence[str]) -> tuple[Strategy, dict[str, Any]]:
    """A strategy and its fields from a name and flags, as in `--strategies 'tome --r 13'`."""
    parser = Parser(prog=f"--strategies {name}", add_help=False)
    options.add_strategy_flags(parser)
    args, unknown = parser.parse_known_args(list(flags))
    if unknown:
        raise UserError(f"--strategies '{shlex.join([name, *flags])}': unknown {' '.join(unknown)}")
    fields = options.given_fields(args)
    try:
        return make_strategy(name, **fields), fields
    except FieldError:
        raise
    except UserError as error:
        raise UserError(f"--strategies: {error}") from error


def evaluate_ways(
    args: argparse.Namespace, run: Run, ways: Sequence[Way], indices: Sequence[int] | None = None
) -> list[list[Evaluation]]:
    """What each draw of each way finds, all in one pass over the data."""
    from anchorprune.evaluate import evaluate_all

    settings = settings_of(args)
    loaded = load(args, run, settings)
    set_language(loaded.tokenizer, run.model, run.language)
    dataset = open_dataset(run.dataset, transform=loaded.transform, **source_of(args, run))
    if dataset.multilabel:
        raise UserError(f"--dataset {run.dataset}: {args.which} compares accuracies, and this data set has many labels")
    strategies = [strategy for way in ways for strategy in (way.strategies or (None,))]
    found = iter(evaluate_all(loaded, dataset, strategies, settings, keep_outcomes=True, indices=indices))
    return [[next(found) for _ in way.strategies or (None,)] for way in ways]


def write(args: argparse.Namespace, run: Run, found: Evaluation, folder: Any) -> Any:
    """Write one result and its outcomes; returns the file."""
    config_hash = results.config_hash(config_of(args, run, found.strategy, settings_of(args)))
    name = f"{found.strategy.name} {found.strategy.flags()}" if found.strategy else "unpruned"
    file = folder / (re.sub(r"[^\w.]+", "_", name.strip()) + ".json")
    result = result_of(args, run, found.result, config_hash)
    save_outcomes(found, file)
    results.write({**result, "outcomes": outcomes.path_for(file).name}, file)
    return file


def measured(
    args: argparse.Namespace, run: Run, way: Way, found: Sequence[Evaluation], unpruned: Evaluation
) -> Measured:
    """What a way cost and kept, beside the unpruned model in the same pass."""
    from anchorprune.report.frontier import Measured

    right = share_right(found)
    dense = share_right([unpruned])
    accuracy = fmean(right)
    low, high = wilson(accuracy, len(right))
    against = bootstrap_difference(right, dense) if way.strategies else None
    return Measured(
        name=way.name,
        flags=way.flags,
        gmacs=found[0].result["cost"]["gmacs"],
        images_per_second=fmean(one.result["cost"]["images_per_second"] for one in found),
        accuracy=accuracy,
        low=low,
        high=high,
        difference=against.value if against else None,
        difference_low=against.low if against else None,
        difference_high=against.high if against else None,
        # Of draws there is no one pair of outcomes to test.
        p_value=mcnemar(right, dense) if against and len(found) == 1 else None,
        draws=len(found),
        command=command(args, way),
    )


def share_right(found: Sequence[Evaluation]) -> list[float]:
    """For each image the share of the draws that got it right."""
    right = [one.outcomes.right.tolist() for one in found if one.outcomes]
    return [fmean(image) for image in zip(*right, strict=True)]


def command(args: argparse.Namespace, way: Way) -> str:
    """The `eval` command line that measures this way alone."""
    words = ["anchorprune", "eval", *eval_flags(args)]
    if way.strategies:
        words += ["--enable_pruning", "--strategy", way.name, *shlex.split(way.flags)]
    return shlex.join(words)


def eval_flags(args: argparse.Namespace) -> list[str]:
    """The flags given that `eval` has too, as they were typed."""
    words, skipping = [], False
    for word in args.argv:
        if word.startswith("--"):
            action = args.parser._option_string_actions.get(word.split("=")[0])
            skipping = action is not None and action.dest in ("strategies", "targets", "out")
        if not skipping:
            words.append(word)
    return words


def facts(result: dict[str, Any]) -> dict[str, str]:
    """How it was measured, for the page."""
    environment = result["environment"]
    return {
        "Images": f"{result['n_samples']} of {result['n_total']}, seed {result['seed']}",
        "Machine": f"{environment['device_name']} ({environment['device']}, {environment['threads']} threads)",
        "Precision": environment["dtype"],
        "Batch size": str(result["batch_size"]),
        "Versions": f"anchorprune {environment['anchorprune']}, torch {environment['torch']}, "
        f"open_clip {environment['open_clip']}",
        "Timing": "all ways in turns, batch by batch, in one process; blocks that a way does not prune yet count with "
        "the time that the unpruned tower took for them",
    }
