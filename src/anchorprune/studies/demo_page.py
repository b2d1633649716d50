"""The demo's page: its numbers, its chart, and a dozen photographs with their kept tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from anchorprune.evaluation.statistics import difference
from anchorprune.pruning import prune
from anchorprune.report import page
from anchorprune.report.chart import Point
from anchorprune.report.pictures import (
    Picture,
    Prediction,
    enlarged,
    kept_tokens,
    normalisation,
    patch_cells,
    unnormalised,
)
from anchorprune.report.table import Row, Timing, times
from anchorprune.studies import demo_words as words
from anchorprune.studies.demo import (
    CREDITS,
    DESCRIBED,
    EVAL,
    GRADUAL,
    RANDOM,
    REPEATS,
    SCALE,
    TIMED,
    UNPRUNED,
    Found,
    Way,
    pick,
)
from anchorprune.towers import find_tower

if TYPE_CHECKING:
    from anchorprune.datasets.base import EvalDataset
    from anchorprune.models.base import LoadedModel


def describe(
    loaded: LoadedModel,
    dataset: EvalDataset,
    indices: Sequence[int],
    found: Sequence[Found],
    rows: Sequence[Row],
    timings: Sequence[Timing],
    command: str,
    warning: str = "",
) -> str:
    """The page as HTML.

    Args:
        found, rows, timings: belong together, one for each way of pruning.
        command: what was typed.
        warning: why the speeds are not to be trusted; empty where they are.
    """

    def place(way: Way) -> int:
        return next(i for i, one in enumerate(found) if one.way == way)

    unpruned, described, drawn = place(UNPRUNED), place(DESCRIBED), place(RANDOM)
    assert dataset.classes is not None
    truth = found[unpruned].truth
    before, after = found[unpruned].predictions[0], found[described].predictions[0]
    by = difference(found[described].right, found[drawn].right)
    # What is not reliable is not said in words; the table has it, with the warning.
    told = [dataclasses.replace(row, speed_up=None) for row in rows] if warning else rows
    against_random = words.against_random(told[described], told[drawn], by)
    return page.render(
        page.Page(
            title=words.headline(told[described], told[unpruned]),
            kicker="anchorprune demo: the described method, defaults, on the bundled model and photos",
            findings=[text for text in (against_random, words.best(told, told[unpruned]), warning) if text],
            rows=rows,
            rows_notes=[
                note
                for note in (
                    words.draws_note(rows),
                    "The intervals are Wilson's and say how far another such set of photos might differ; all rows "
                    "share the same photos, so two rows can differ more surely than their intervals suggest.",
                    words.about_the_model(len(dataset.classes)),
                )
                if note
            ],
            points=[
                Point(_series(row, one.way), _label(row, one.way), row.gmacs, row.accuracy, row.low, row.high)
                for row, one in zip(rows, found, strict=True)
            ],
            chart_notes=[
                "Bars are 95 % intervals. The accuracy axis does not start at zero. Markers that would cover each "
                "other stand a few pixels aside. Selecting tokens is included in the compute."
            ],
            pictures=_pictures(loaded, dataset, indices, truth, found, (unpruned, described, drawn)),
            pictures_notes=[
                f"Left, the photo as the model saw it; right, the {rows[described].tokens - 1} patches that the "
                "described method kept for the rest of the model. The first block saw all of them. Below, what the "
                "model took the photo for: unpruned, pruned by the described method (anchor), and with the first "
                "random draw.",
                words.changes_note(truth, before, after),
            ],
            facts=_facts(found[described].results[0].to_dict(), timings[described].ratios, len(dataset.classes)),
            command="\n".join(
                [
                    f"{command}    # this page",
                    f"anchorprune {' '.join(EVAL)}    # one row of it",
                    f"anchorprune {' '.join(EVAL)} --enable_pruning",
                ]
            ),
            credits=CREDITS,
        )
    )  # fmt: skip


def _series(row: Row, way: Way) -> str:
    """What the chart's legend says; the budgets of one strategy share it."""
    return row.name if way in GRADUAL else row.title


def _label(row: Row, way: Way) -> str:
    return way.short if row.block is None else f"{way.short}, block {row.block}"


def _facts(result: dict[str, Any], ratios: Sequence[float], classes: int) -> dict[str, str]:
    machine = result["environment"]
    slowest, fastest = times(min(ratios)), times(max(ratios))
    return {
        "Images": f"{result['n_samples']} of {result['n_total']} bundled photos of {classes} classes; the model "
        "was not trained on any of them",
        "Model": f"{result['model']} ({result['pretrained']} weights), {result['cost']['gmacs_dense']:.2f} GMACs an "
        "image unpruned",
        "Device": f"{machine['device_name']} ({machine['device']}), {machine['threads']} threads",
        "System": machine["platform"],
        "Arithmetic": f"{machine['dtype']}, {result['batch_size']} images at once",
        "Speed": f"of the image tower alone: all rows in turns on the same images, {TIMED} at once, {REPEATS} rounds, "
        f"medians; the rounds of the described method lie between {slowest} and {fastest}",
        "Versions": f"anchorprune {machine['anchorprune']}, torch {machine['torch']}, open_clip "
        f"{machine['open_clip']}, Python {machine['python']}",
        "Files": "the JSON files beside this page hold each evaluation; their images/s are of the pass they shared",
    }


def _pictures(
    loaded: LoadedModel,
    dataset: EvalDataset,
    indices: Sequence[int],
    truth: Sequence[int],
    found: Sequence[Found],
    places: tuple[int, int, int],
) -> list[Picture]:
    """A dozen photographs with what the described method keeps of them."""
    assert dataset.classes is not None
    shown = pick(truth, found[places[0]].predictions[0], found[places[1]].predictions[0])
    pixels = torch.stack([dataset.items[indices[i]][0] for i, _ in shown])
    tower = find_tower(loaded.model)
    strategy = DESCRIBED.strategies()[0]
    assert strategy is not None
    with torch.inference_mode(), prune(loaded.model, strategy) as pruning:
        loaded.model.encode_image(pixels.to(next(loaded.model.parameters()).device))
    plan = pruning.record.plans.get(2)
    mean, std = normalisation(loaded.transform)
    pictures = []
    for n, (i, kind) in enumerate(shown):
        image = enlarged(unnormalised(pixels[n], mean, std), SCALE)
        kept = patch_cells(range(tower.num_tokens) if plan is None else plan.keep[n].tolist(), tower.num_prefix_tokens)
        anchors = (
            patch_cells(plan.anchors[n].tolist(), tower.num_prefix_tokens)
            if plan and plan.anchors is not None
            else set()
        )
        names = zip((UNPRUNED.short, DESCRIBED.short, RANDOM.short), places, strict=True)
        pictures.append(
            Picture(
                original=image,
                kept=kept_tokens(image, tower.grid, kept, anchors),
                truth=dataset.classes[truth[i]],
                predictions=[
                    Prediction(by, dataset.classes[guess := found[p].predictions[0][i]], guess == truth[i])
                    for by, p in names
                ],
                what=words.KINDS[kind],
                kept_in_words=f"The same photograph with {len(anchors)} anchors, {len(kept - anchors)} other kept "
                f"patches, and {tower.num_patches - len(kept)} dropped ones darkened",
            )
        )
    return pictures
