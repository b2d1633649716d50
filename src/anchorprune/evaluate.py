"""One evaluation: model × data set × task × pruning -> result."""

from __future__ import annotations

import os
import platform
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import anchorprune
from anchorprune.attention import get_vision_attention
from anchorprune.cost import clock, peak_memory_mb, reset_peak_memory
from anchorprune.datasets import EvalDataset
from anchorprune.datasets.sampling import Batch, choose, loader
from anchorprune.encoding import Encoder, EncodersInTurns, flops_of
from anchorprune.errors import UserError
from anchorprune.outcomes import Outcomes
from anchorprune.pruning import Pruning
from anchorprune.strategies.base import Strategy
from anchorprune.tasks import zeroshot_classification
from anchorprune.texts import cached, classifier_key
from anchorprune.towers.base import LoadedModel

# What autocast or the weights compute in, by the names that open_clip gives precisions.
AUTOCAST = {"amp": None, "amp_bf16": torch.bfloat16}
WEIGHTS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SLOW = 10.0  # seconds of waiting for images from which on it is said that they come too slowly


@dataclass(frozen=True)
class Settings:
    """How to evaluate; everything that is not the model, the data, the task or the strategy."""

    device: torch.device
    precision: str = "amp"
    batch_size: int = 64
    num_workers: int = 4
    limit: int | None = None
    seed: int = 0
    skip_bad_images: bool = False
    verbose: bool = True
    load_clfs: tuple[str, ...] = ()
    save_clf: str | None = None
    attention_images: int = 8
    cache_dir: str | None = None  # where classifiers made of texts are kept; None: nowhere

    def autocast(self) -> AbstractContextManager[Any]:
        if self.precision not in AUTOCAST:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=AUTOCAST[self.precision])

    @property
    def weights(self) -> str:
        """What the weights are held in, by open_clip's name."""
        return self.precision if self.precision in WEIGHTS else "fp32"

    @property
    def dtype(self) -> str:
        """What matrix products are computed in, for the record."""
        if self.precision in WEIGHTS:
            return str(WEIGHTS[self.precision]).removeprefix("torch.")
        dtype = AUTOCAST[self.precision] or torch.get_autocast_dtype(self.device.type)
        return f"{str(dtype).removeprefix('torch.')} (autocast)"


@dataclass
class Attention:
    """The attention of a few images, as `--attention_output` holds it."""

    weights: list[Tensor]
    kept: Tensor
    tokens_before: int

    def as_dict(self, model: str, pretrained: str, dataset: str) -> dict[str, Any]:
        batch, heads = self.weights[0].shape[:2]
        return {
            "attention_weights": self.weights,
            "kept_indices": self.kept,
            "model": model,
            "pretrained": pretrained,
            "dataset": dataset,
            "num_layers": len(self.weights),
            "shape_info": {
                "images": batch,
                "heads": heads,
                "tokens_before": self.tokens_before,
                "tokens_after": self.kept.shape[1],
                "layers": [list(weights.shape) for weights in self.weights],
            },
        }

    @property
    def megabytes(self) -> float:
        return sum(weights.nbytes for weights in self.weights) / 1e6


@dataclass
class Evaluation:
    """What `evaluate` found.

    Attributes:
        strategy: None for the unpruned model.
        result: the parts of a result that it knows.
        outcomes: what became of each image that could be read, in order; where it was asked for.
        attention: where it was asked for.
    """

    strategy: Strategy | None
    result: dict[str, Any]
    outcomes: Outcomes | None = None
    attention: Attention | None = None


def evaluate(
    loaded: LoadedModel,
    dataset: EvalDataset,
    strategy: Strategy | None,
    settings: Settings,
    *,
    keep_outcomes: bool = False,
    extract_attention: bool = False,
) -> Evaluation:
    """Zero-shot classification of `dataset` with the model, pruned by `strategy` or not at all.

    The model is restored before this returns, also after an exception.

    Raises:
        UserError: a data set without class names or prompts, an unreadable image, a classifier that does not fit.
    """
    (found,) = evaluate_all(
        loaded, dataset, [strategy], settings, keep_outcomes=keep_outcomes, extract_attention=extract_attention
    )
    return found


def evaluate_all(
    loaded: LoadedModel,
    dataset: EvalDataset,
    strategies: Sequence[Strategy | None],
    settings: Settings,
    *,
    keep_outcomes: bool = False,
    extract_attention: bool = False,
    indices: Sequence[int] | None = None,
) -> list[Evaluation]:
    """`evaluate` for many strategies in one pass over the data: each image is decoded once.

    Batch by batch all strategies take turns. With None among them, the blocks before the first that a strategy prunes
    run once for all (`encoding.UnprunedBlocks`); its metrics are those of `evaluate` with it alone.

    Args:
        keep_outcomes: of single-label data, for `Evaluation.outcomes`; memory then grows with the images.
        indices: images of the data set; None: those that `settings.limit` and `settings.seed` choose.
    """
    if dataset.classes is None:
        raise UserError(f"--dataset {dataset.name}: has no class names (classnames.txt), which zero-shot needs")
    if indices is None:
        indices = choose(dataset.keys, settings.limit, settings.seed)
    model = loaded.model
    dense_flops = flops_of(model)
    # Before the texts are encoded, because a strategy may be refused.
    encoders = [Encoder(model, strategy, settings.device, settings.autocast, dense_flops) for strategy in strategies]
    in_turns = EncodersInTurns(encoders)
    # Not inference_mode: on a CPU, under autocast, it takes F.linear off its fast path (13 times slower, torch 2.14).
    with torch.no_grad():
        reset_peak_memory(settings.device)
        start = clock(settings.device)
        classifier = _classifier(loaded, dataset, settings).to(settings.device)
        seconds_of_texts = clock(settings.device) - start
        tasks = [zeroshot_classification.ZeroShot(classifier, dataset.multilabel, keep_outcomes) for _ in strategies]
        bad: set[str] = set()
        batches = _Waited(_batches(dataset, indices, settings))
        for batch in batches:
            bad.update(key for key, _ in batch.bad)
            if batch.images is None:
                continue
            images = batch.images.to(settings.device, WEIGHTS.get(settings.precision, torch.float32))
            for i, features in in_turns(images):
                tasks[i].update(features, batch.targets)
        if not encoders[0].images:
            raise UserError(f"--dataset {dataset.name}: no image of it can be read")
        attention = _attention(model, dataset, indices, settings, encoders[0]) if extract_attention else None
    encoding = sum(encoder.seconds for encoder in encoders)
    if batches.seconds > max(SLOW, encoding):
        warnings.warn(
            f"images came slower than they were encoded ({batches.seconds:.0f} s of waiting, {encoding:.0f} s of "
            f"encoding): more --num_workers than {settings.num_workers} may help",
            stacklevel=2,
        )
    if settings.save_clf:  # last, so that bad input leaves no file behind
        _save(classifier, settings.save_clf)

    keys = [dataset.keys[i] for i in indices if dataset.keys[i] not in bad] if keep_outcomes else []
    memory = peak_memory_mb(settings.device) if len(strategies) == 1 else None
    found = []
    for encoder, task in zip(encoders, tasks, strict=True):
        result = {
            "metrics": task.metrics(),
            "pruning": _pruning_record(encoder.pruning),
            "cost": {
                "gmacs_dense": None if dense_flops is None else dense_flops / 2e9,
                "gmacs": None if encoder.flops is None else encoder.flops / 2e9,
                "images_per_second": encoder.images_per_second,
                "seconds": {
                    "texts": seconds_of_texts,
                    "waiting_for_images": batches.seconds,
                    "encoding": encoder.seconds,
                },
                "peak_memory_mb": memory,
            },
            "n_samples": encoder.images,
            "n_total": len(dataset.keys),
            "n_bad_images": len(indices) - encoder.images,
            "limit": settings.limit,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "model_options": loaded.options,
            "environment": environment(settings),
        }
        outcomes = Outcomes(tuple(keys), *task.outcomes()) if keep_outcomes else None  # type: ignore[arg-type]
        found.append(Evaluation(encoder.strategy, result, outcomes, attention))
    return found


def environment(settings: Settings) -> dict[str, Any]:
    """Versions, device, dtype and threads: what a measurement depends on besides the input."""
    cuda = settings.device.type == "cuda"
    return {
        "anchorprune": anchorprune.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "open_clip": version("open_clip_torch"),
        "platform": platform.platform(),
        "device": str(settings.device),
        "device_name": torch.cuda.get_device_name(settings.device) if cuda else _processor(),
        "dtype": settings.dtype,
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


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


def _batches(dataset: EvalDataset, indices: Sequence[int], settings: Settings) -> Iterator[Batch]:
    """Batches with a progress bar on a terminal."""
    quiet = not settings.verbose or not sys.stderr.isatty()
    with tqdm(total=len(indices), unit="image", disable=quiet, desc=dataset.name, smoothing=0.05) as bar:
        for batch in loader(dataset, indices, batch_size=settings.batch_size, num_workers=settings.num_workers):
            _check_bad(batch, dataset, settings)
            yield batch
            bar.update(len(batch.targets) + len(batch.bad))


def _check_bad(batch: Batch, dataset: EvalDataset, settings: Settings) -> None:
    if batch.bad and not settings.skip_bad_images:
        key, reason = batch.bad[0]
        raise UserError(f"--dataset {dataset.name}: cannot read image {key} ({reason}); --skip_bad_images goes on")


def _classifier(loaded: LoadedModel, dataset: EvalDataset, settings: Settings) -> Tensor:
    assert dataset.classes is not None
    if settings.load_clfs:
        return zeroshot_classification.load_classifiers(settings.load_clfs, len(dataset.classes))
    if dataset.templates is None:
        raise UserError(
            f"--dataset {dataset.name}: has no prompts (zeroshot_classification_templates.txt); "
            "give --custom_template_file"
        )
    texts = (dataset.classes, dataset.templates)

    def build() -> Tensor:
        with settings.autocast():
            return zeroshot_classification.build_classifier(loaded.model, loaded.tokenizer, *texts, settings.device)

    if not settings.cache_dir:
        return build()
    key = classifier_key(loaded.model, loaded.tokenizer, *texts, f"{settings.dtype} {settings.device.type}")
    return cached(os.path.join(settings.cache_dir, "classifiers"), key, build)


def _pruning_record(pruning: Pruning | None) -> dict[str, Any] | None:
    if pruning is None:
        return None
    return {
        **pruning.strategy.as_dict(),
        "effective": pruning.effective,
        "tokens_before": pruning.tokens_before,
        "tokens_after": pruning.tokens_after,
        "tokens_by_block": pruning.tokens_by_block,
    }


def _attention(
    model: Any, dataset: EvalDataset, indices: Sequence[int], settings: Settings, encoder: Encoder
) -> Attention:
    """The attention of the first `attention_images` images that can be read, in half precision."""
    wanted, images = settings.attention_images, []
    for batch in loader(dataset, indices, batch_size=wanted, num_workers=0):
        if batch.images is not None:
            images.append(batch.images)
        if sum(map(len, images)) >= wanted:
            break
    first = torch.cat(images)[:wanted].to(settings.device, WEIGHTS.get(settings.precision, torch.float32))
    with encoder.pruning or nullcontext() as pruning, settings.autocast():
        weights = get_vision_attention(model, first, dtype=torch.float16)
    n = weights[0].shape[-1]
    kept = torch.arange(n).repeat(len(first), 1) if pruning is None or pruning.kept is None else pruning.kept
    return Attention([w.cpu() for w in weights], kept.cpu().clone(), n)


def save_attention(attention: Attention, path: str, model: str, pretrained: str, dataset: str) -> None:
    """Write the dict of `Attention.as_dict`, whole or not at all; `torch.load(path, weights_only=True)` reads it."""
    _save(attention.as_dict(model, pretrained, dataset), path)


def _save(content: Any, path: str) -> None:
    unfinished = f"{path}.{os.getpid()}.tmp"
    try:
        torch.save(content, unfinished)
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)
