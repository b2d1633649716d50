"""How pruned features differ from unpruned ones, measured on unlabelled images and written down to be undone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from anchorprune.alignment import LEAST, Fit, fit, signature
from anchorprune.datasets.base import KINDS
from anchorprune.datasets.sampling import Batch
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.engine import evaluate
from anchorprune.evaluation.request import Request
from anchorprune.evaluation.runtime import Runtime
from anchorprune.files import StrPath
from anchorprune.models import load
from anchorprune.models.base import LoadedModel
from anchorprune.progress import Reporting
from anchorprune.strategies import RECOMMENDED, Wanted
from anchorprune.strategies.base import CompositeStrategy, Strategy
from anchorprune.strategies.calibrated import Calibration
from anchorprune.studies.sweep import plan
from anchorprune.studies.ways import Way
from anchorprune.tasks.base import Bench, EncodeSplit, Task
from anchorprune.towers import find_tower


@dataclass(frozen=True)
class FittedCalibration:
    """What `calibrate` found.

    Attributes:
        calibration: to save, and to prune by: `prune(model, "calibrated", calibration=path)`.
        fits: what each alignment is worth, by cross-validation.
        gmacs: of each of its strategies.
        images: that it was made of.
    """

    calibration: Calibration
    fits: Sequence[Fit]
    gmacs: Sequence[float]
    images: int

    def save(self, path: StrPath) -> None:
        """Write a safetensors file, all of it or nothing."""
        self.calibration.save(path)

    def to_text(self) -> str:
        """A table."""
        lines = [f"{'entry':>5}  {'GMACs':>6}  {'cosine to unpruned':>18}  {'aligned':>8}  pruning"]
        for i, (one, gmacs) in enumerate(zip(self.fits, self.gmacs, strict=True)):
            pruning = self.calibration.strategies[i]
            flags = f"{pruning.name} {pruning.flags()}".rstrip()
            lines.append(f"{i:>5}  {gmacs:>6.2f}  {one.cosine:>18.4f}  {one.aligned:>8.4f}  {flags}")
        lines += ["", f"Cosines of {self.images} images, aligned by what was fitted to others of them."]
        return "\n".join(lines)


def calibrate(
    request: Request,
    *,
    strategies: Sequence[str | Strategy | Wanted] = (RECOMMENDED,),
    targets: Sequence[float] | None = None,
    model: LoadedModel | None = None,
    dataset: Any = None,
    progress: bool | Reporting = True,
    say: Callable[[str], object] | None = None,
) -> FittedCalibration:
    """Fit what brings pruned features nearer to the unpruned ones of the same images. Nothing is trained.

    Args:
        request: model and data, without a pruning; of the data only the images count. Some thousands are best, of the
            kind that will be encoded; those that results are to be measured on should not be among them.
        strategies: to calibrate, each at every target.
        targets: GMACs that the budgets are solved for; None: the budgets as they are.
        model, dataset: your own, as in `evaluate`.
        progress: a bar, where standard error is a terminal; or how else one wants to be told.
        say: is told in a line what is done.

    Raises:
        UserError: something in the input is wrong, or there are too few images.
    """
    request = dataclasses.replace(request, task=_Features())
    ways = [Way(way.strategies[:1]) for way in plan(request, strategies, targets, model)]
    for way in ways[1:]:
        if isinstance(way.strategies[0], CompositeStrategy):
            raise UserError(f"{way.name}: calibrate the strategies that it is made of")
    if model is None:
        runtime = Runtime.of(request.compute)
        model = load(request.model, runtime.device, runtime.weights, request.data.seed)
    if say:
        say(f"{len(ways) - 1} way{'s' if len(ways) > 2 else ''} of pruning to calibrate")
    requests = [way.requests(request)[0] for way in ways]
    found = evaluate(requests, model=model, dataset=dataset, progress=progress)
    unpruned, *pruned = found[0].artifacts["features"]
    if len(unpruned) < LEAST:
        raise FieldError(
            "dataset", request.data.name, f"{len(unpruned)} images are too few to calibrate with: give {LEAST} or more"
        )
    order = sorted(range(len(pruned)), key=lambda i: -found[i + 1].cost["gmacs"])
    fits = [fit(pruned[i], unpruned) for i in order]
    chosen = tuple(ways[i + 1].strategies[0] for i in order)
    gmacs = [found[i + 1].cost["gmacs"] for i in order]
    tower = signature(find_tower(model.model).module)
    if tower is None:
        raise FieldError("model", request.model.name, "its tower has no floating-point weights to be known again by")
    about = {
        "model": request.model.name,
        "pretrained": request.model.pretrained,
        "dataset": request.data.name,
        "split": request.data.split,
        "images": len(unpruned),
        "precision": request.compute.precision,
        "budgets": [
            {"gmacs": cost, "cosine": one.cosine, "aligned": one.aligned, "ridge": one.ridge}
            for cost, one in zip(gmacs, fits, strict=True)
        ],
    }
    made = Calibration(chosen, tuple(one.alignment for one in fits), tower, about)
    return FittedCalibration(made, fits, gmacs, len(unpruned))


@dataclass(frozen=True)
class _Features(Task):
    """The features that come out of the tower, as they are."""

    name: ClassVar[str] = "fidelity"  # whose data it takes: any images
    kinds: ClassVar[tuple[str, ...]] = tuple(kind for kind in KINDS if kind != "choices")

    @property
    def primary(self) -> str:
        return "images"

    def forward(self, model: Any, images: Tensor) -> Tensor:
        tower, found = find_tower(model), []

        def take(features: Tensor) -> Tensor:
            found.append(features)
            return features

        tower.with_features(tower.module(images), take)
        return found[0].float()

    def prepare(self, bench: Bench) -> list[_Kept]:
        return []

    def meter(self, prepared: list[_Kept], encode_split: EncodeSplit) -> _Kept:
        prepared.append(_Kept())
        return prepared[-1]

    def artifacts(self, prepared: list[_Kept]) -> dict[str, Any]:
        return {"features": [torch.cat(kept.features) for kept in prepared]}


@dataclass
class _Kept:
    """The features of one way of pruning, in order."""

    features: list[Tensor] = field(default_factory=list)

    def update(self, out: Tensor, batch: Batch) -> None:
        self.features.append(out.cpu())

    def merge(self, other: _Kept) -> None:
        self.features += other.features

    def compute(self) -> dict[str, float]:
        return {"images": 1.0}

    def scores(self) -> None:
        return None
