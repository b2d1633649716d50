"""The bundled model on the bundled photographs, unpruned and pruned, and a page about it."""

from __future__ import annotations

import dataclasses
import random
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

from anchorprune import bundled
from anchorprune.errors import FieldError, Unwritten
from anchorprune.evaluation.request import Compute, DataSpec, ModelSpec, Request
from anchorprune.evaluation.result import Result
from anchorprune.files import output_folder, write_text
from anchorprune.strategies import RECOMMENDED, make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.terminal import line_width

TIMED, REPEATS = 16, 5  # photos at once in the timing, and rounds of it
BUSY = 0.05  # share of the timing spent waiting for the processor from which on its numbers are called unreliable
PICTURES = {"lost": 4, "gained": 2, "neither": 1, "kept": 5}  # photos shown of each of `words.KINDS`
SCALE = 3  # of the pictures
EVAL = ["eval", "--model", bundled.MODEL, "--pretrained", bundled.TAG, "--dataset", bundled.TAG, "--no_amp"]

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
    """What one way's evaluations found, for each draw."""

    way: Way
    results: Sequence[Result]

    @property
    def predictions(self) -> list[list[int]]:
        """Of each draw, photo by photo, the class it was taken for."""
        return [one.outcomes.details["predictions"].tolist() for one in self.results if one.outcomes]

    @property
    def truth(self) -> list[int]:
        """Of each photo the class it has."""
        assert self.results[0].outcomes is not None
        targets: list[int] = self.results[0].outcomes.details["targets"].tolist()
        return targets

    @property
    def right(self) -> list[float]:
        """For each photo the share of draws that recognised it."""
        from anchorprune.studies.ways import mean_scores

        return mean_scores(self.results)


def run_demo(out: str, limit: int | None, verbose: bool) -> None:
    """Evaluate all `WAYS`, print the table, and write the results and `report.html` to the folder `out`.

    Raises:
        UserError: a bad limit, a folder that cannot be written to, or an installation without the bundled files.
    """
    bundled.check_weights(bundled.MODEL)
    if limit is not None and limit < 1:
        raise FieldError("limit", limit, "give a number of photos from 1 up, or leave it out for all of them.")
    request = Request(
        model=ModelSpec(name=bundled.MODEL, pretrained=bundled.TAG),
        data=DataSpec(name=bundled.TAG, limit=limit),
        compute=Compute(precision="fp32", batch_size=32, num_workers=0),
    )
    with output_folder("out", out, "report.html", *(file for way in WAYS for file in way.files())) as folder:
        _say(verbose, "The bundled model on the bundled photos; this takes a minute or two on two cores.")
        command = shlex.join(["anchorprune", "demo", *_given(out, limit)])
        page, table, results = _measure(request, command, verbose)
        report = folder / "report.html"
        _say(verbose, f"\n{table}")
        try:
            for result, file in zip(results, (file for way in WAYS for file in way.files()), strict=True):
                # Each photo's outcome is for the page alone.
                dataclasses.replace(result, outcomes=None).save(folder / file)
            write_text(page, report)
        except Unwritten:
            _say(not verbose, table)
            raise
    _say(verbose, f"\n{report}: the same with a chart and pictures, to open in a browser")


def _given(out: str, limit: int | None) -> list[str]:
    return (["--out", out] if out != "anchorprune-demo" else []) + (["--limit", str(limit)] if limit else [])


def _measure(request: Request, command: str, verbose: bool) -> tuple[str, str, list[Result]]:
    """Evaluates and times; returns the page, the table and the results."""
    # Only now: bad input answers at once, this takes seconds to import.
    import torch

    from anchorprune.datasets import open_dataset
    from anchorprune.datasets.sampling import choose
    from anchorprune.evaluation.engine import evaluate
    from anchorprune.evaluation.runtime import Runtime
    from anchorprune.models import load
    from anchorprune.pruning import prune
    from anchorprune.pruning.copies import sharing_copy
    from anchorprune.pruning.cost import time_in_turns, waited_seconds
    from anchorprune.report.table import Timing, as_text, row
    from anchorprune.studies import demo_words as words
    from anchorprune.studies.demo_page import describe
    from anchorprune.towers import find_tower

    runtime = Runtime.of(request.compute)
    loaded = load(request.model, runtime.device, runtime.weights)
    strategies = [way.strategies() for way in WAYS]
    requests = [dataclasses.replace(request, pruning=strategy) for each in strategies for strategy in each]
    results = evaluate(requests, model=loaded, keep_scores=True, progress=verbose)
    remaining = iter(results)
    found = [Found(way, list(islice(remaining, way.draws))) for way in WAYS]

    dataset = open_dataset(request.data, loaded.transform)
    indices = choose(dataset.keys, request.data.limit, request.data.seed)
    batch = torch.stack([dataset.items[i][0] for i in indices[:TIMED]]).to(runtime.device)
    encoders = []
    for strategy, *_ in strategies:
        encoders.append(sharing_copy(loaded.model))
        if strategy is not None:
            prune(encoders[-1], strategy)
    works = [partial(encoder.encode_image, batch) for encoder in encoders]
    with torch.inference_mode(), runtime.autocast():
        for work in works:
            work()
        before, start = waited_seconds(), time.perf_counter()
        seconds = time_in_turns(works, runtime.device, REPEATS)
        busy = (waited_seconds() - before) / (time.perf_counter() - start)

    all_tokens = find_tower(loaded.model).num_tokens
    timings = [Timing(len(batch), of_way, seconds[0]) for of_way in seconds]
    rows = [
        row(one.way.name, one.way.detail, [result.to_dict() for result in one.results], all_tokens, timing)
        for one, timing in zip(found, timings, strict=True)
    ]
    warning = words.busy_note(busy) if busy > BUSY else ""
    page = describe(loaded, dataset, indices, found, rows, timings, command, warning)
    return page, "\n\n".join(filter(None, [as_text(rows, line_width()), warning])), results


def pick(truth: Sequence[int], before: Sequence[int], after: Sequence[int]) -> list[tuple[int, str]]:
    """Photos to show, as (position, kind of `words.KINDS`): always the same ones, of different classes.

    As many of each kind as `PICTURES` says; where there are fewer, others take their places.
    """
    from anchorprune.studies.demo_words import kind_of

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
