"""Requests in, results out: those that differ in pruning alone share one pass over the data."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from anchorprune.datasets import open_dataset
from anchorprune.datasets.base import EvalDataset
from anchorprune.datasets.own import OwnDataset, as_eval_dataset
from anchorprune.datasets.sampling import Batch, choose, loader
from anchorprune.errors import FieldError, FieldWarning, UserError
from anchorprune.evaluation.encoding import Encoder, EncodersInTurns, flops_of
from anchorprune.evaluation.kept import Collected, FeatureStore, digest_of, evaluate_kept, facts_of
from anchorprune.evaluation.preflight import check_shards
from anchorprune.evaluation.request import Request
from anchorprune.evaluation.result import Attention, Part, Result
from anchorprune.evaluation.runtime import Runtime
from anchorprune.files import user_cache
from anchorprune.models import load
from anchorprune.models.base import LoadedModel
from anchorprune.models.languages import set_language
from anchorprune.progress import Reporting, reporting_of, telling
from anchorprune.pruning.attention import get_vision_attention
from anchorprune.pruning.cascade import Cascading
from anchorprune.pruning.copies import sharing_copy
from anchorprune.pruning.cost import clock, peak_memory_mb, reset_peak_memory
from anchorprune.tasks.base import Bench, EncodeSplit

SLOW = 10.0  # seconds of waiting for images from which on it is said that they come too slowly


@overload
def evaluate(
    requests: Request,
    *,
    shard: tuple[int, int] = ...,
    model: Any = ...,
    dataset: Any = ...,
    keep_scores: bool = ...,
    attention_images: int = ...,
    indices: Sequence[int] | None = ...,
    progress: bool | Reporting = ...,
) -> Result: ...
@overload
def evaluate(
    requests: Sequence[Request],
    *,
    shard: tuple[int, int] = ...,
    model: Any = ...,
    dataset: Any = ...,
    keep_scores: bool = ...,
    attention_images: int = ...,
    indices: Sequence[int] | None = ...,
    progress: bool | Reporting = ...,
) -> list[Result]: ...
def evaluate(
    requests: Request | Sequence[Request],
    *,
    shard: tuple[int, int] = (0, 1),
    model: Any = None,
    dataset: Any = None,
    keep_scores: bool = False,
    attention_images: int = 0,
    indices: Sequence[int] | None = None,
    progress: bool | Reporting = True,
) -> Result | list[Result]:
    """Evaluate one request, or many; requests that differ in pruning alone share one pass over the data.

    With the unpruned model among them, the blocks before the first that a pruning acts in run once for all; the metrics
    are those of each request alone.

    Args:
        shard: (rank, world): only every world-th sample from the rank-th on; `merge` makes one result of all.
        model: a `LoadedModel` to use instead of loading what the requests name; your own model, with its transform.
        dataset: data of your own instead of what the requests name: a map-style `Dataset` of (image, class index), or
            an `OwnDataset` with class names and prompts.
        keep_scores: each sample's score too (`Result.outcomes`), where the task has them; memory grows with them.
        attention_images: of how many images the attention is kept (`Result.artifacts["attention"]`).
        indices: samples of the data set to take instead of those that `limit` and `seed` choose.
        progress: a bar, where standard error is a terminal; or how else one wants to be told.

    Returns:
        A result for each request, in their order; for a single request its result.

    Raises:
        UserError: an unreadable image, a model or data that the task cannot use, a strategy that the tower refuses. The
            model is restored then too.
    """
    if isinstance(requests, Request):
        (result,) = evaluate(
            [requests],
            shard=shard,
            model=model,
            dataset=dataset,
            keep_scores=keep_scores,
            attention_images=attention_images,
            indices=indices,
            progress=progress,
        )
        return result
    if not 0 <= shard[0] < shard[1]:
        raise FieldError("shard", shard, "must be (rank, world) with a rank below the world's size")
    if shard[1] > 1:
        check_shards(requests)
    wanted = _Wanted(shard, keep_scores, attention_images, indices, progress)
    if any(request.compute.skip_load for request in requests) and (indices is not None or attention_images):
        raise UserError("skip_load: kept features are those of all images of the request, and hold no attention")
    if attention_images and any(request.pruning and request.pruning.acts == "stages" for request in requests):
        raise UserError("attention: a cascade runs several towers, so that there is no one attention; ask of a stage")
    passes: dict[Request, list[int]] = {}
    for i, request in enumerate(requests):
        passes.setdefault(request.unpruned(), []).append(i)
    results: dict[int, Result] = {}
    loaded: LoadedModel | None = model
    for base, places in passes.items():
        if base.compute.skip_load:
            if model is not None or dataset is not None:
                raise UserError("skip_load: features of a model or data that are objects are not kept; leave it out")
            found = evaluate_kept([requests[i] for i in places], shard=shard, keep_scores=keep_scores)
            results.update(zip(places, found, strict=True))
            continue
        runtime = Runtime.of(base.compute)
        if model is None and (loaded is None or loaded.spec != base.model):
            loaded = None  # frees the last model before the next one is loaded
            loaded = load(base.model, runtime.device, runtime.weights, base.data.seed)
        assert loaded is not None
        found = _Pass(base, loaded, dataset, runtime, wanted).run([requests[i] for i in places])
        results.update(zip(places, found, strict=True))
    return [results[i] for i in range(len(requests))]


@dataclass(frozen=True)
class _Wanted:
    """What `evaluate` was asked for besides the requests."""

    shard: tuple[int, int]
    keep_scores: bool
    attention_images: int
    indices: Sequence[int] | None
    progress: bool | Reporting


class _Pass:
    """One pass over the data, for requests that differ in pruning alone."""

    def __init__(
        self,
        base: Request,
        loaded: LoadedModel,
        own: Any,
        runtime: Runtime,
        wanted: _Wanted,
    ) -> None:
        self.base, self.loaded, self.runtime, self.wanted = base, loaded, runtime, wanted
        self.splits: dict[str, EvalDataset] = {}  # what was opened
        if loaded.tokenizer is not None:
            set_language(loaded.tokenizer, base.model.name, base.data.language)  # the last run's may have been another
        self.own = own
        self.dataset = self._opened(base.data.split)
        # What cannot be loaded by its name again is not kept.
        root = base.compute.feature_root if base.task.keeps_features and own is None else ""
        named = root and loaded.spec == base.model
        self.store = FeatureStore(root, digest_of(loaded)) if named else None
        if self.dataset.kind not in base.task.kinds:
            kinds = " or ".join(base.task.kinds)
            raise FieldError("dataset", self.dataset.name, f"has {self.dataset.kind}; {base.task.name} needs {kinds}")
        scored = base.task.scored_kinds or base.task.kinds
        if wanted.keep_scores and self.dataset.kind not in scored:  # now, and not after hours of work
            fix = (
                f"has {self.dataset.kind}, of which {base.task.name} gives no score of each image to keep or compare by"
            )
            raise FieldError("dataset", self.dataset.name, fix)
        data = base.data
        chosen = choose(self.dataset.keys, data.limit, data.seed) if wanted.indices is None else wanted.indices
        rank, world = wanted.shard
        self.indices = list(chosen)[rank::world]
        self.sharded = world > 1

    def run(self, requests: Sequence[Request]) -> list[Result]:
        """Their results. Each pruning is in force throughout, in a copy of the model where there are several."""
        base, model, device, task = self.base, self.loaded.model, self.runtime.device, self.base.task
        dense_flops = flops_of(model)
        with ExitStack() as prunings:
            encoders = []
            for request in requests:
                # Of a single one not even the modules are copied: a model of one's own may not allow it.
                own = sharing_copy(model) if request.pruning and len(requests) > 1 else model
                encoders.append(Encoder(own, request.pruning, self.runtime, task.forward, dense_flops))
                prunings.callback(encoders[-1].restore)
            in_turns = EncodersInTurns(encoders)
            # Not inference_mode: on a CPU, under autocast, it takes F.linear off its fast path (13 times slower, 2.14).
            prunings.enter_context(torch.no_grad())
            reset_peak_memory(device)
            start = clock(device)
            prepared = task.prepare(self._bench())
            seconds_of_texts = clock(device) - start
            for encoder in encoders:
                if isinstance(encoder.pruning, Cascading) and encoder.pruning.bank is None:
                    encoder.pruning.bank = task.artifacts(prepared)["classifier"]
            meters = [
                task.meter(prepared, self._encode_split(encoder, request))
                for encoder, request in zip(encoders, requests, strict=True)
            ]
            # Of a part of the split nothing is kept.
            store = None if self.sharded or self.wanted.indices is not None else self.store
            collected = [Collected(self.dataset) for _ in encoders] if store else []
            batches = _Waited(self._batches(self.dataset, self.indices, base.data.name, self._share))
            for batch in batches:
                if batch.images is None:
                    for gathered in collected:
                        gathered.add(None, batch)
                    continue
                images = batch.images.to(device, self.runtime.images)
                for i, out in in_turns(images):
                    meters[i].update(out, batch)
                    if store:
                        collected[i].add(out, batch)
            if not encoders[0].images and not self.sharded:
                raise FieldError("dataset", self.dataset.name, "no image of it can be read")
            attention = self._attention(encoders[0]) if self.wanted.attention_images else None
        encoding = sum(encoder.seconds for encoder in encoders)
        if batches.seconds > max(SLOW, encoding):
            said = (
                f"images came slower than they were encoded ({batches.seconds:.0f} s of waiting, {encoding:.0f} s of "
                "encoding): more {} than " + f"{base.compute.num_workers} may help"
            )
            warnings.warn(FieldWarning(said.format("num_workers"), said.format("--num_workers")), stacklevel=2)
        memory = peak_memory_mb(device) if len(requests) == 1 else None
        seconds = {"texts": seconds_of_texts, "waiting_for_images": batches.seconds}
        artifacts = {**task.artifacts(prepared), "attention": attention}
        environment = self.runtime.environment()
        contents: dict[str, str] = {}  # the weights are read once for all hashes
        results = []
        for i, (request, encoder, meter) in enumerate(zip(requests, encoders, meters, strict=True)):
            result = Result(
                request=request,
                metrics={},
                pruning=_pruning_record(encoder),
                cost={
                    "gmacs_dense": None if dense_flops is None else dense_flops / 2e9,
                    "gmacs": None if encoder.flops is None else encoder.flops / 2e9,
                    "images_per_second": encoder.images_per_second,
                    "seconds": {**seconds, "encoding": encoder.seconds},
                    "peak_memory_mb": memory,
                },
                n_samples=encoder.images,
                n_total=len(self.dataset.keys),
                n_bad_images=len(self.indices) - encoder.images,
                model_options=self.loaded.options,
                environment=environment,
                # What cannot be loaded by its name again has no hash to be found by.
                config_hash=request.hash(contents) if self.own is None and self.loaded.spec == request.model else None,
                classes=self.dataset.classes,
                templates=self.dataset.templates,
                artifacts={name: value for name, value in artifacts.items() if value is not None},
                part=Part(meter, self.wanted.keep_scores),
            )
            if store and (features := collected[i].features(**facts_of(result))):
                store.write(request, base.data.split, features, limit=base.data.limit)
            results.append(result if self.sharded else result.finished())
        return results

    def _opened(self, split: str) -> EvalDataset:
        if split not in self.splits:
            self.splits[split] = self._open(split)
        return self.splits[split]

    def _open(self, split: str) -> EvalDataset:
        transform = self.base.task.transform(self.loaded.transform)
        if self.own is not None:
            alone = not (isinstance(self.own, OwnDataset) and self.own.splits)
            if alone and split != self.base.data.split:
                raise FieldError("split", split, "this data has one split alone; give an OwnDataset with splits")
            return as_eval_dataset(self.own, self.base.data.name, transform, split)
        spec = dataclasses.replace(self.base.data, split=split)
        with telling(reporting_of(self.wanted.progress)):
            return open_dataset(spec, transform, self.base.task.name)

    def _bench(self) -> Bench:
        return Bench(
            loaded=self.loaded,
            dataset=self.dataset,
            open_split=self._opened,
            device=self.runtime.device,
            autocast=self.runtime.autocast,
            precision=self.runtime.dtype,
            cache_dir=_classifiers_in(self.base.compute.clf_cache),
            keep_scores=self.wanted.keep_scores,
            seed=self.base.data.seed,
            batch_size=self.base.compute.batch_size,
            reporting=reporting_of(self.wanted.progress),
        )

    def _encode_split(self, encoder: Encoder, request: Request) -> EncodeSplit:
        """Gives what the encoder gives of another split; that is not part of what is measured."""

        def encode(dataset: EvalDataset) -> Iterator[tuple[Tensor, Batch]]:
            split = next(name for name, opened in self.splits.items() if opened is dataset)
            found = self._encoded(encoder, dataset, split)
            if self.store:
                found = self.store.kept_or_encoded(request, split, dataset, found)
            return ((out, batch) for out, batch in found if out is not None)

        return encode

    def _encoded(self, encoder: Encoder, dataset: EvalDataset, split: str) -> Iterator[tuple[Tensor | None, Batch]]:
        for batch in self._batches(dataset, range(len(dataset)), f"{dataset.name}, {split}"):
            images = None if batch.images is None else batch.images.to(self.runtime.device, self.runtime.images)
            yield None if images is None else encoder.encode(images), batch

    @property
    def _share(self) -> str:
        """Whose part of the data this is, where it is not all: its number of images is not that of the data."""
        return ", rank {} of {}".format(*self.wanted.shard) if self.sharded else ""

    def _batches(self, dataset: EvalDataset, indices: Sequence[int], name: str, share: str = "") -> Iterator[Batch]:
        """Batches, telling how far it is."""
        compute = self.base.compute
        with reporting_of(self.wanted.progress).of(name + share, len(indices)) as progress:
            for batch in loader(dataset, indices, batch_size=compute.batch_size, num_workers=compute.num_workers):
                if batch.bad and not self.base.data.skip_bad_images:
                    key, reason = batch.bad[0]
                    raise FieldError(
                        "dataset",
                        name,
                        f"cannot read image {key} ({reason}); skip_bad_images goes on",
                        typed=f"cannot read image {key} ({reason}); --skip_bad_images goes on",
                    )
                yield batch
                progress.update(len(batch.targets) + len(batch.bad))

    def _attention(self, encoder: Encoder) -> Attention:
        """The attention of the first `attention_images` images that can be read, in half precision."""
        wanted, images = self.wanted.attention_images, []
        for batch in loader(self.dataset, self.indices, batch_size=wanted, num_workers=0):
            if batch.images is not None:
                images.append(batch.images.flatten(0, -4))  # of a sample there may be several
            if sum(map(len, images)) >= wanted:
                break
        first = torch.cat(images)[:wanted].to(self.runtime.device, self.runtime.images)
        with self.runtime.autocast():
            weights = get_vision_attention(encoder.model, first, dtype=torch.float16)
        n = weights[0].shape[-1]
        kept = encoder.pruning.kept if encoder.pruning else None
        kept = torch.arange(n).repeat(len(first), 1) if kept is None else kept
        return Attention([w.cpu() for w in weights], kept.cpu().clone(), n)


class _Waited:
    """Batches as they come, with the seconds that were spent waiting for them."""

    def __init__(self, batches: Iterator[Batch]) -> None:
        self._batches = batches
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        while True:
            start = time.perf_counter()
            batch = next(self._batches, None)
            self.seconds += time.perf_counter() - start
            if batch is None:
                return
            yield batch


def _pruning_record(encoder: Encoder) -> dict[str, Any] | None:
    """The strategy as JSON holds it, and what it did, apart from its fields."""
    if (pruning := encoder.pruning) is None:
        return None
    measured: dict[str, Any] = {
        "effective": pruning.effective,
        "tokens_before": pruning.tokens_before,
        "tokens_after": pruning.tokens_after,
        "tokens_by_block": pruning.tokens_by_block,
    }
    if (shares := pruning.shares) is not None:
        measured["shares"] = shares
    return {**pruning.strategy.as_dict(), "measured": measured}


def _classifiers_in(folder: str | None) -> str | None:
    if folder is not None:
        return folder
    try:
        return str(user_cache())
    except UserError:  # a user without a home keeps none
        return None
