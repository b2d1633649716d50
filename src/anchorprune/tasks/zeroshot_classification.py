"""Zero-shot classification: a classifier from texts, and the metrics of clip-benchmark.

Metrics are held against clip-benchmark 1.6.2's own functions in the tests.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from anchorprune.errors import FieldError, UserError
from anchorprune.reading import exists
from anchorprune.tasks.base import Bench, EncodeSplit, Outcomes, Task, option
from anchorprune.tasks.counting import ClassCounts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch

Templates = Sequence[str] | dict[str, list[str]]


@dataclass(frozen=True)
class ZeroShotClassification(Task):
    """Images against the texts of their classes: the class whose prompts are closest."""

    name: ClassVar[str] = "zeroshot_classification"
    kinds: ClassVar[tuple[str, ...]] = ("classes", "labels")
    scored_kinds: ClassVar[tuple[str, ...]] = ("classes",)  # of several labels an image none is right or wrong
    classifies: ClassVar[bool] = True

    load_clfs: tuple[str, ...] = option((), "use saved classifiers, averaged", kind=str, file=True)

    @property
    def primary(self) -> str:
        return "acc1"

    @property
    def needs_text_tower(self) -> bool:
        return not self.load_clfs

    def check(self) -> None:
        for path in self.load_clfs:
            if not exists(path):
                raise FieldError("load_clfs", path, "no such file")

    def prepare(self, bench: Bench) -> Prepared:
        dataset = bench.dataset
        if dataset.classes is None:
            raise FieldError("dataset", dataset.name, "has no class names (classnames.txt), which zero-shot needs")
        classifier = self._classifier(bench, dataset.classes).to(bench.device)
        return Prepared(classifier, dataset.kind == "labels", bench.keep_scores, dataset.keys)

    def meter(self, prepared: Prepared, encode_split: EncodeSplit) -> ZeroShot:
        return ZeroShot(prepared.classifier, prepared.multilabel, prepared.keep_scores, prepared.keys)

    def artifacts(self, prepared: Prepared) -> dict[str, Any]:
        return {"classifier": prepared.classifier}

    def _classifier(self, bench: Bench, classes: list[str]) -> Tensor:
        from anchorprune.models.texts import cached, classifier_key

        if self.load_clfs:
            return load_classifiers(self.load_clfs, len(classes))
        templates = bench.dataset.templates
        if templates is None:
            raise FieldError(
                "dataset",
                bench.dataset.name,
                "has no prompts (zeroshot_classification_templates.txt); give templates",
                typed="has no prompts (zeroshot_classification_templates.txt); give --custom_template_file",
            )
        loaded = bench.loaded
        if loaded.tokenizer is None:
            raise UserError("this model has no text tower to make a classifier with: give load_clfs")

        def build() -> Tensor:
            with bench.autocast():
                return build_classifier(loaded.model, loaded.tokenizer, classes, templates, bench.device)

        if not bench.cache_dir or not hasattr(loaded.model, "named_modules"):  # of which no weights can be told apart
            return build()
        precision = f"{bench.precision} {bench.device.type}"
        key = classifier_key(loaded.model, loaded.tokenizer, classes, templates, precision)
        return cached(os.path.join(bench.cache_dir, "classifiers"), key, build, len(classes))


@dataclass
class Prepared:
    """`classifier [D, classes]`; whether images have several labels; whether each image's class is wanted."""

    classifier: Tensor
    multilabel: bool
    keep_scores: bool
    keys: Sequence[str]


def build_classifier(
    model: Any,
    tokenizer: Any,
    classes: Sequence[str],
    templates: Templates,
    device: torch.device,
    batch_size: int = 256,
) -> Tensor:
    """One text vector a class: the normalised mean of its prompts' normalised embeddings.

    Args:
        model: has `encode_text`.
        tokenizer: list of texts -> LongTensor `[texts, length]`.
        classes: class names.
        templates: prompts with `{c}` where the class name goes, or a dict from class name to its own prompts.
        batch_size: prompts encoded at once.

    Returns:
        `[D, classes]`, float32, columns of length 1.

    Raises:
        UserError: a class without prompts.
    """
    import torch
    from torch.nn import functional as F

    from anchorprune.models.texts import encode_texts, prompts_of

    prompts: list[str] = []
    counts: list[int] = []
    for name in classes:
        own = templates.get(name, []) if isinstance(templates, dict) else prompts_of(name, templates)
        if not own:
            raise UserError(f"no prompts for class {name!r}: add it to the templates file")
        prompts += own
        counts.append(len(own))
    embedded = encode_texts(model, tokenizer(prompts), device, batch_size)
    means = [of_class.mean(dim=0) for of_class in embedded.split(counts)]
    return F.normalize(torch.stack(means, dim=1), dim=0)


def load_classifiers(paths: Sequence[str], num_classes: int) -> Tensor:
    """The mean of the classifiers `[D, num_classes]` saved in `paths` (`--load_clfs`), in float32.

    Raises:
        UserError: a file that is missing, damaged, of another shape, of other numbers than real ones, or not finite.
    """
    import torch

    from anchorprune.pruning.gate import read_classifier

    loaded: list[Tensor] = []
    for path in paths:
        classifier = read_classifier(path, "load_clfs")
        if classifier.shape[1] != num_classes:
            raise FieldError(
                "load_clfs",
                path,
                f"holds {classifier.shape[1]} classes ({list(classifier.shape)}), the data set has {num_classes}",
            )
        if loaded and classifier.shape != loaded[0].shape:
            other = f"{paths[0]} is {list(loaded[0].shape)}"
            raise FieldError("load_clfs", path, f"is {list(classifier.shape)}, {other}")
        loaded.append(classifier)
    return torch.stack(loaded).mean(dim=0)


class ZeroShot:
    """The metrics of image features against a classifier, batch by batch.

    What it holds does not grow with the images, unless each one's class is kept or the data is multi-label, whose
    metric ranks all images by each class.
    """

    def __init__(
        self, classifier: Tensor, multilabel: bool, keep_scores: bool = False, keys: Sequence[str] | None = None
    ) -> None:
        """`classifier [D, classes]`; `keep_scores` for `scores`, of single-label data; `keys` as in `ClassCounts`."""
        self.classifier, self.multilabel = classifier, multilabel
        self._counts = ClassCounts(classifier.shape[1], keep_scores, keys)
        # Of each batch of multi-label data: which samples, what is true of them, and the logits.
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, out: Tensor, batch: Batch) -> None:
        """Take normalised image features `[B, D]`.

        Raises:
            UserError: a classifier for features of another width.
        """
        if out.shape[1] != self.classifier.shape[0]:
            raise UserError(
                f"the classifier is for features of width {self.classifier.shape[0]}, the model's have "
                f"{out.shape[1]}: give classifiers (load_clfs) that were made with this model"
            )
        # In float32 also under autocast: in bfloat16 the logits of close classes tie.
        logits = (100.0 * out.float() @ self.classifier).cpu()
        if self.multilabel:
            self._kept.append((batch.indices, batch.targets.cpu(), logits))
        else:
            self._counts.update(logits, batch)

    def merge(self, other: ZeroShot) -> None:
        self._counts.merge(other._counts)
        self._kept += other._kept

    def scores(self) -> Outcomes | None:
        """Whether each image was recognised, with its class and the one it was given; None for multi-label data."""
        return None if self.multilabel else self._counts.scores()

    def compute(self) -> dict[str, float]:
        """Single-label: acc1, acc5 (NaN below 5 classes), mean_per_class_recall (over the classes that occur).

        Multi-label: mean_average_precision. All between 0 and 1.
        """
        if self.multilabel:
            import torch

            indices, truth, logits = (torch.cat(parts) for parts in zip(*self._kept, strict=True))
            order = indices.argsort()  # the data set's, however it was dealt out
            return {"mean_average_precision": _average_precision(logits[order], truth[order].bool())}
        return self._counts.compute()


def _average_precision(scores: Tensor, truth: Tensor) -> float:
    import torch

    ranked = truth.gather(0, scores.sort(dim=0, descending=True, stable=True).indices)
    rank = torch.arange(1, len(ranked) + 1).unsqueeze(1)
    precision = ranked.cumsum(dim=0) / rank
    per_class = (precision * ranked).sum(dim=0) / ranked.sum(dim=0).clamp_min(1)
    return float(per_class.mean())
