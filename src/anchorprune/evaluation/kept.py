"""Features of whole splits, kept on disk for the next run; and results from them alone, without model and images."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from anchorprune.datasets.base import EvalDataset
from anchorprune.datasets.sampling import Batch
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.artifacts import save_tensors
from anchorprune.evaluation.request import Request, plain
from anchorprune.evaluation.result import Part, Result
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models.base import LoadedModel
from anchorprune.models.digest import add_model, described
from anchorprune.reading import check_archive, check_real, json_of
from anchorprune.tasks.base import Bench

# Changes when other features would be computed for the same key.
_VERSION = 1
# What a result from kept features takes over from the run that encoded them.
_FACTS = ("pruning", "cost", "n_total", "n_bad_images", "model_options", "environment")


@dataclass
class Features:
    """What an encoder gave of a split, as `Task.forward` gives it, in the order of the data set.

    Attributes:
        keys: of all samples of the split.
        classes: names, where the data set has them.
        features: float32 `[n, D]`, of those that were encoded.
        targets, indices: long `[n]`, their classes, and which samples they are.
        bad: (key, reason) of those that could not be read.
        facts: of the split that was evaluated, what its result said besides the metrics.
    """

    keys: list[str]
    classes: list[str] | None
    features: Tensor
    targets: Tensor
    indices: Tensor
    bad: list[tuple[str, str]]
    facts: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """ValueError for what `FeatureStore.write` does not write."""
        matrix, *vectors = (self.features, self.targets, self.indices)
        check_real(matrix, 2)
        if not matrix.isfinite().all():
            raise ValueError("features that are not finite")
        count = len(matrix)
        if any(vector.dtype != torch.int64 or vector.shape != (count,) for vector in vectors):
            raise ValueError("targets and indices are no whole numbers, one for each sample")
        if count and not 0 <= int(self.indices.min()) <= int(self.indices.max()) < len(self.keys):
            raise ValueError("indices of samples that there are not")
        texts = [*self.keys, *(self.classes or []), *(text for pair in self.bad for text in pair)]
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.facts, dict):
            raise ValueError("names that are no texts")

    def batches(self, size: int) -> Iterator[tuple[Tensor, Batch]]:
        """The features as they come of an encoder, and batches without images."""
        parts = (tensor.split(size) for tensor in (self.features, self.targets, self.indices))
        for features, targets, indices in zip(*parts, strict=True):
            yield features, Batch(None, targets, indices, [self.keys[i] for i in indices.tolist()], [])

    def as_dataset(self, name: str) -> EvalDataset:
        """The split as it was opened, without its images."""
        return EvalDataset(name, _NoImages(), self.keys, self.classes, None)


class _NoImages:
    def __getitem__(self, index: int) -> tuple[Any, Any]:
        raise UserError("the images of kept features are not opened")


class Collected:
    """Gathers what an encoder gives of a split, batch by batch."""

    def __init__(self, dataset: EvalDataset) -> None:
        self._dataset = dataset
        self._parts: list[tuple[Tensor, Tensor, Tensor]] = []
        self._bad: list[tuple[str, str]] = []

    def add(self, out: Tensor | None, batch: Batch) -> None:
        """`out [B, D]`; None where no image of the batch could be read."""
        self._bad += batch.bad
        if out is not None:
            self._parts.append((out.float().cpu(), batch.targets, batch.indices))

    def features(self, **facts: Any) -> Features | None:
        """All of it; None where there is nothing."""
        if not self._parts:
            return None
        features, targets, indices = (torch.cat(each) for each in zip(*self._parts, strict=True))
        classes = self._dataset.classes
        return Features(list(self._dataset.keys), classes, features, targets, indices, self._bad, facts)


class FeatureStore:
    """The features of one model on one data set, in a folder; a file for each split and each way of pruning.

    A file is called by what the request says of its features (`Request.features_hash`), and holds what was computed
    with: features of other weights under the same name, or of a split that has changed, are not used.
    """

    def __init__(self, root: str, made_with: str | None = None) -> None:
        """`made_with`: `digest_of` the model, to hold files against; None: they are taken as they are."""
        self._root, self._made_with = Path(root), made_with
        self._contents: dict[str, str] = {}  # the weights are read once for all files

    def read(
        self, request: Request, split: str, *, limit: int | None = None, dataset: EvalDataset | None = None
    ) -> Features | None:
        """The features of that split; None where none are kept, or they are others than this model's or data's."""
        try:
            check_archive(self._file(request, split, limit))
            found = torch.load(self._file(request, split, limit), map_location="cpu", weights_only=True)
            made_with, text = found.pop("made_with"), json_of(found.pop("text"))
            kept = Features(**found, **text)
            kept.check()
        except Exception:  # not there, damaged, not ours to read: torch.load raises half a dozen kinds
            return None
        if self._made_with not in (None, made_with):
            return None
        if dataset is not None and not _is_of(kept, dataset):
            return None
        if kept.bad and not request.data.skip_bad_images:
            return None  # reading them again tells what is wrong
        return kept

    def write(self, request: Request, split: str, features: Features, *, limit: int | None = None) -> None:
        """Keep them, all or nothing. Where that cannot be, it is said, and the work goes on."""
        file = self._file(request, split, limit)
        text = {name: getattr(features, name) for name in ("keys", "classes", "bad", "facts")}
        tensors = {name: getattr(features, name) for name in ("features", "targets", "indices")}
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors({**tensors, "made_with": self._made_with, "text": json.dumps(plain(text))}, file)
        except OSError as error:
            warnings.warn(f"features are not kept in {self._root} ({error.strerror})", stacklevel=2)

    def kept_or_encoded(
        self, request: Request, split: str, dataset: EvalDataset, encoded: Iterator[tuple[Tensor | None, Batch]]
    ) -> Iterator[tuple[Tensor | None, Batch]]:
        """All of a split, as it is kept, or else as it is encoded, and kept then."""
        if (kept := self.read(request, split, dataset=dataset)) is not None:
            yield from kept.batches(request.compute.batch_size)
            return
        collected = Collected(dataset)
        for out, batch in encoded:
            collected.add(out, batch)
            yield out, batch
        if (features := collected.features()) is not None:
            self.write(request, split, features)

    def _file(self, request: Request, split: str, limit: int | None) -> Path:
        pruning = request.pruning.name if request.pruning else "unpruned"
        said = re.sub(r"[^\w.]+", "_", f"{request.data.name} {split} {request.model.name} {pruning}")[-100:]
        return self._root / f"{said.strip('_.')}_{request.features_hash(split, limit, self._contents)}.pt"


def _is_of(kept: Features, dataset: EvalDataset) -> bool:
    """Whether the data set has the samples, classes and targets that it had."""
    if kept.keys != list(dataset.keys) or kept.classes != dataset.classes:
        return False
    if dataset.targets is None or dataset.kind != "classes":
        return True
    return bool((torch.as_tensor(dataset.targets)[kept.indices] == kept.targets).all())


def digest_of(loaded: LoadedModel) -> str:
    """What features are computed with: the weights, the modules, what is done to images, and torch's version."""
    digest = hashlib.sha256(f"{_VERSION} {torch.__version__} {described(loaded.transform)}".encode())
    add_model(digest, loaded.model)
    return digest.hexdigest()


def facts_of(result: Result) -> dict[str, Any]:
    """What a result from kept features will take over from this one."""
    return {name: getattr(result, name) for name in _FACTS}


def evaluate_kept(requests: Sequence[Request], *, shard: tuple[int, int], keep_scores: bool) -> list[Result]:
    """Results from kept features alone (`Compute.skip_load`); cost and counts are those of the run that kept them.

    Raises:
        UserError: features that are not there.
    """
    return [_evaluate_kept(request, shard, keep_scores) for request in requests]


def _evaluate_kept(request: Request, shard: tuple[int, int], keep_scores: bool) -> Result:
    compute, task, data = request.compute, request.task, request.data
    store, (rank, world) = FeatureStore(compute.feature_root), shard
    opened: list[tuple[EvalDataset, Features]] = []

    def opened_split(split: str, limit: int | None = None, facts: bool = False) -> EvalDataset:
        found = store.read(request, split, limit=limit)
        if found is None or (facts and not found.facts.keys() >= set(_FACTS)):
            said = f"holds no features of {data.name}, {split}, by this model and pruning; evaluate once without"
            raise FieldError("feature_root", compute.feature_root, f"{said} skip_load", typed=f"{said} --skip_load")
        opened.append((found.as_dataset(data.name), found))
        return opened[-1][0]

    runtime, dataset = Runtime.of(compute), opened_split(data.split, data.limit, facts=True)
    features = opened[0][1]
    bench = Bench(
        loaded=LoadedModel(None, transform=lambda image: image),
        dataset=dataset,
        open_split=lambda split: dataset if (split, None) == (data.split, data.limit) else opened_split(split),
        device=runtime.device,
        autocast=runtime.autocast,
        precision=runtime.dtype,
        keep_scores=keep_scores,
        seed=data.seed,
        batch_size=compute.batch_size,
    )

    def encode_split(wanted: EvalDataset) -> Iterator[tuple[Tensor, Batch]]:
        return next(each for known, each in opened if known is wanted).batches(compute.batch_size)

    with torch.no_grad():
        meter = task.meter(task.prepare(bench), encode_split)
        seen = 0
        for i, (out, batch) in enumerate(features.batches(compute.batch_size)):
            if i % world == rank:
                meter.update(out, batch)
                seen += len(out)
    facts = {name: features.facts[name] for name in _FACTS}
    if rank > 0:
        facts["n_bad_images"] = 0
    result = Result(
        request=request,
        metrics={},
        n_samples=seen,
        config_hash=request.hash(),
        classes=features.classes,
        part=Part(meter, keep_scores),
        **facts,
    )
    return result if world > 1 else result.finished()
