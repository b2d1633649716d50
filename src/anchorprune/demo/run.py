"""`anchorprune demo`: the bundled model on the bundled photographs, unpruned and pruned, and a page about it."""

from __future__ import annotations

import argparse
import dataclasses
import random
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from anchorprune import demo, results
from anchorprune.cli import build_parser
from anchorprune.errors import UserError
from anchorprune.planning import plan_runs
from anchorprune.runs import config_of, result_of, settings_of
from anchorprune.strategies import RECOMMENDED, make_strategy
from anchorprune.strategies.base import Strategy

TIMED, REPEATS = 16, 5  # photos at once in the timing, and rounds of it
BUSY = 0.05  # share of the timing spent waiting for the processor from which on its numbers are called unreliable
PICTURES = {"lost": 4, "gained": 2, "neither": 1, "kept": 5}  # photos shown of each of `words.KINDS`
SCALE = 3  # of the pictures
EVAL = ["eval", "--model", demo.MODEL, "--pretrained", demo.TAG, "--dataset", demo.TAG, "--no_amp"]

CREDITS = [
    (
        "Photographs: Caltech-101, Fei-Fei Li, Marco Andreeto, Marc'Aurelio Ranzato, Pietro Perona, CaltechDATA 2022, "
        "scaled down and cropped; with pruned tokens marked.",
        [
            ("doi.org/10.22002/D1.20086", "https://doi.org/10.22002/D1.20086"),
            ("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/"),
        ],
    ),
    ("Written by anchorprune. The colours of the marks are Okabe and Ito's.", []),
]


@dataclass(frozen=True)
class Way:
    """One way of pruning, or none; `draws` of a strategy that draws."""

    name: str
    detail: str
    short: str  # its name where there is little room
    file: str
    strategy: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    draws: int = 1

    def strategies(self) -> list[Strategy | None]:
        """One for each draw."""
        if self.strategy is None:
            return [None]
        if self.draws == 1:
            return [make_strategy(self.strategy, **self.fields)]
        return [make_strategy(self.strategy, **self.fields, draw_seed=seed) for seed in range(self.draws)]

    def files(self) -> list[str]:
        return [f"{self.file}.json"] if self.draws == 1 else [f"{self.file}_{i}.json" for i in range(self.draws)]


CHANGED = {"score_norm": "minmax", "importance": "from_anchors"}
UNPRUNED = Way("everything", "unpruned", "unpruned", "unpruned")
DESCRIBED = Way("anchor", "as described", "anchor", "anchor", "anchor")
RANDOM = Way("random", "mean of 3 draws", "random", "random", "random", draws=3)
RESCORED = Way("anchor", "minmax, from_anchors", "minmax", "anchor_minmax_from_anchors", "anchor", CHANGED)
EARLY = (DESCRIBED, RESCORED, RANDOM)
LATE = tuple(
    dataclasses.replace(
        way, file=f"{way.file}_block4", fields={**way.fields, "prune_layers" if way is RANDOM else "prune_layer": 4}
    )
    for way in EARLY
)
# About the compute of the described method in block 2, and in block 4.
GRADUAL = tuple(
    Way(name, f"{detail}, {flag} {budget}", f"{name} {budget}", f"{name}_{budget}", name, {flag: budget})
    for name, detail, flag, budgets in (
        (RECOMMENDED, "recommended", "keep_patches", (66, 124)),
        ("tome", "merging", "r", (37, 20)),
    )
    for budget in budgets
)
WAYS = (UNPRUNED, *EARLY, *LATE, *GRADUAL)


@dataclass
class Found:
    """What one way's evaluations found: results and, photo by photo, the predicted class, for each draw."""

    way: Way
    results: list[dict[str, Any]]
    predictions: list[list[int]]

    def right(self, truth: Sequence[int]) -> list[float]:
        """For each photo the share of draws that recognised it."""
        return [fmean(guess == target for guess in of) for target, *of in zip(truth, *self.predictions, strict=True)]


def run_demo(out: str, limit: int | None, verbose: bool) -> None:
    """Evaluate all `WAYS`, print the table, and write the results and `report.html` to the folder `out`.

    Raises:
        UserError: a bad limit, a folder that cannot be written to, or an installation without the bundled files.
    """
    demo.check_weights(demo.MODEL)
    if limit is not None and limit < 1:
        raise UserError(f"--limit {limit}: give a number of photos from 1 up, or leave it out for all of them.")
    more = ["--batch_size", "32", "--num_workers", "0", "--quiet", *(["--limit", str(limit)] if limit else [])]
    args = build_parser().parse_args([*EVAL, *more])
    with results.folder("--out", out) as folder:
        _say(verbose, "The bundled model on the bundled photos; this takes a minute or two on two cores.")
        page, table = _measure(args, shlex.join(["anchorprune", "demo", *_given(out, limit)]), folder, verbose)
        report = folder / "report.html"
        results.write_text(page, report)
    _say(verbose, f"\n{table}\n\n{report}: the same with a chart and pictures, to open in a browser")


def _given(out: str, limit: int | None) -> list[str]:
    return (["--out", out] if out != "anchorprune-demo" else []) + (["--limit", str(limit)] if limit else [])


class _Remembered:
    """Items that are decoded once: every way sees the same photos."""

    def __init__(self, items: Any) -> None:
        self.items, self.known = items, dict[int, tuple[Any, Any]]()

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        if index not in self.known:
            self.known[index] = self.items[index]
        return self.known[index]


def _measure(args: argparse.Namespace, command: str, folder: Path, verbose: bool) -> tuple[str, str]:
    """Evaluates, times and writes the results; returns the page and the table."""
    # Only now: bad input answers at once, this takes seconds to import.
    import torch
    from tqdm import tqdm

    from anchorprune.cost import time_in_turns, waited_seconds
    from anchorprune.datasets import open_dataset
    from anchorprune.datasets.sampling import choose
    from anchorprune.demo import words
    from anchorprune.demo.page import describe
    from anchorprune.evaluate import evaluate
    from anchorprune.pruning import prune
    from anchorprune.report.table import Timing, as_text, row
    from anchorprune.towers import find_tower, open_clip

    run, settings = plan_runs(args)[0], settings_of(args)
    loaded = open_clip.load(run.model, run.pretrained, cache_dir=None, device=settings.device, precision="fp32")
    dataset = open_dataset(run.dataset, split=args.split, transform=loaded.transform)
    dataset.items = _Remembered(dataset.items)
    indices = choose(dataset.keys, settings.limit, settings.seed)

    found: list[Found] = []
    rounds = sum(way.draws for way in WAYS)
    with tqdm(total=rounds * len(indices), unit="image", disable=not (verbose and sys.stderr.isatty())) as bar:
        for way in WAYS:
            bar.set_description(way.short)
            each = []
            for strategy, file in zip(way.strategies(), way.files(), strict=True):
                each.append(evaluate(loaded, dataset, strategy, settings, keep_outcomes=True))
                config_hash = results.config_hash(config_of(args, run, strategy, settings))
                result = result_of(args, run, each[-1].result, config_hash)
                results.write(result, folder / file)
                each[-1].result = result
                bar.update(len(indices))
            found.append(
                Found(
                    way,
                    [one.result for one in each],
                    [one.outcomes.predictions.tolist() for one in each if one.outcomes],
                )
            )
        bar.set_description("timing, in turns")
        batch = torch.stack([dataset.items[i][0] for i in indices[:TIMED]]).to(settings.device)
        states = [_state(prune, loaded.model, way.strategies()[0]) for way in WAYS]
        with torch.inference_mode(), settings.autocast():
            before, start = waited_seconds(), time.perf_counter()
            seconds = time_in_turns(states, lambda _: loaded.model.encode_image(batch), settings.device, REPEATS)
            busy = (waited_seconds() - before) / (time.perf_counter() - start)

    all_tokens = find_tower(loaded.model).num_tokens
    timings = [Timing(len(batch), of_way, seconds[0]) for of_way in seconds]
    rows = [
        row(one.way.name, one.way.detail, one.results, all_tokens, timing)
        for one, timing in zip(found, timings, strict=True)
    ]
    warning = words.busy_note(busy) if busy > BUSY else ""
    page = describe(loaded, dataset, indices, found, rows, timings, command, warning)
    return page, "\n\n".join(filter(None, [as_text(rows), warning]))


def _state(prune: Any, model: Any, strategy: Strategy | None) -> AbstractContextManager[Any]:
    if strategy is None:
        return nullcontext()
    pruning = prune(model, strategy)
    pruning.restore()
    return pruning


def pick(truth: Sequence[int], before: Sequence[int], after: Sequence[int]) -> list[tuple[int, str]]:
    """Photos to show, as (position, kind of `words.KINDS`): always the same ones, of different classes.

    As many of each kind as `PICTURES` says; where there are fewer, others take their places.
    """
    from anchorprune.demo.words import kind_of

    order = list(range(len(truth)))
    random.Random(0).shuffle(order)
    kinds = [kind_of(*one) for one in zip(truth, before, after, strict=True)]
    chosen: list[int] = []

    def take(wanted: Sequence[int], count: int) -> None:
        for new_class in (True, False):
            for i in wanted:
                if count < 1:
                    return
                if i not in chosen and (not new_class or truth[i] not in {truth[j] for j in chosen}):
                    chosen.append(i)
                    count -= 1

    for kind, count in PICTURES.items():
        take([i for i in order if kinds[i] == kind], count)
    take(order, sum(PICTURES.values()) - len(chosen))
    shown = ["kept", "lost", "gained", "neither"]
    return sorted(((i, kinds[i]) for i in chosen), key=lambda one: (shown.index(one[1]), one[0]))


def _say(verbose: bool, text: str) -> None:
    if verbose:
        print(text, flush=True)
