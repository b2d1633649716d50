"""Zero-shot classification: a classifier from texts, and the metrics of clip-benchmark.

Metrics are held against clip-benchmark 1.6.2's own functions in the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anchorprune.errors import UserError
from anchorprune.texts import encode_texts

Templates = Sequence[str] | dict[str, list[str]]


@torch.no_grad()
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
    prompts: list[str] = []
    counts: list[int] = []
    for name in classes:
        own = templates.get(name, []) if isinstance(templates, dict) else [t.format(c=name) for t in templates]
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
        UserError: a file that is missing, damaged, or of another shape.
    """
    loaded: list[Tensor] = []
    for path in paths:
        try:
            classifier = torch.load(path, map_location="cpu", weights_only=True)
        except FileNotFoundError as error:
            raise UserError(f"--load_clfs {path}: no such file") from error
        except Exception as error:  # torch.load raises half a dozen kinds for a file that it cannot read
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise UserError(f"--load_clfs {path}: is no saved tensor ({reason})") from error
        if not isinstance(classifier, Tensor) or classifier.dim() != 2:
            raise UserError(f"--load_clfs {path}: must hold one tensor [features, classes], as --save_clf writes it")
        if classifier.shape[1] != num_classes:
            raise UserError(
                f"--load_clfs {path}: holds {classifier.shape[1]} classes ({list(classifier.shape)}), "
                f"the data set has {num_classes}"
            )
        if loaded and classifier.shape != loaded[0].shape:
            raise UserError(f"--load_clfs {path}: is {list(classifier.shape)}, {paths[0]} is {list(loaded[0].shape)}")
        loaded.append(classifier.float())
    return torch.stack(loaded).mean(dim=0)


class ZeroShot:
    """The metrics of image features against a classifier, batch by batch.

    What it holds does not grow with the images, unless their outcomes are kept or the data is multi-label, whose
    metric ranks all images by each class.
    """

    def __init__(self, classifier: Tensor, multilabel: bool, keep_outcomes: bool = False) -> None:
        """`classifier [D, classes]`; `keep_outcomes` for `outcomes`, of single-label data."""
        self.classifier, self.multilabel, self.keep_outcomes = classifier, multilabel, keep_outcomes
        self._hits5 = 0
        self._seen = torch.zeros(classifier.shape[1], dtype=torch.long)  # images of each class
        self._recalled = torch.zeros_like(self._seen)  # and those of them that were given it
        self._targets: list[Tensor] = []
        self._predictions: list[Tensor] = []
        self._scores: list[Tensor] = []

    def update(self, features: Tensor, targets: Tensor) -> None:
        """Take a batch.

        Args:
            features: normalised image features `[B, D]`.
            targets: class indices `[B]`, or `[B, classes]` of 0 and 1 for a multi-label data set.

        Raises:
            UserError: a classifier for features of another width.
        """
        if features.shape[1] != self.classifier.shape[0]:
            raise UserError(
                f"the classifier is for features of width {self.classifier.shape[0]}, the model's have "
                f"{features.shape[1]}: give --load_clfs files that were made with this model"
            )
        # In float32 also under autocast: in bfloat16 the logits of close classes tie.
        logits = (100.0 * features.float() @ self.classifier).cpu()
        targets = targets.cpu()
        if self.multilabel:
            self._targets.append(targets)
            self._scores.append(logits)
            return
        classes, best = logits.shape[1], logits.topk(min(5, logits.shape[1]), dim=1).indices
        predictions = best[:, 0]
        self._hits5 += int((best == targets[:, None]).sum())
        self._seen += targets.bincount(minlength=classes)
        self._recalled += targets[predictions == targets].bincount(minlength=classes)
        if self.keep_outcomes:
            self._targets.append(targets)
            self._predictions.append(predictions)

    def outcomes(self) -> tuple[Tensor, Tensor]:
        """True and best class of each image, in the order in which they came, each `[n]`."""
        return torch.cat(self._targets), torch.cat(self._predictions)

    def metrics(self) -> dict[str, float]:
        """Single-label: acc1, acc5 (NaN below 5 classes), mean_per_class_recall (over the classes that occur).

        Multi-label: mean_average_precision. All between 0 and 1.
        """
        if self.multilabel:
            truth = torch.cat(self._targets).bool()
            return {"mean_average_precision": _average_precision(torch.cat(self._scores), truth)}
        images, occurs = int(self._seen.sum()), self._seen > 0
        return {
            "acc1": int(self._recalled.sum()) / images,
            "acc5": self._hits5 / images if len(self._seen) >= 5 else float("nan"),
            "mean_per_class_recall": float((self._recalled[occurs].double() / self._seen[occurs]).mean()),
        }


def _average_precision(scores: Tensor, truth: Tensor) -> float:
    ranked = truth.gather(0, scores.sort(dim=0, descending=True, stable=True).indices)
    rank = torch.arange(1, len(ranked) + 1).unsqueeze(1)
    precision = ranked.cumsum(dim=0) / rank
    per_class = (precision * ranked).sum(dim=0) / ranked.sum(dim=0).clamp_min(1)
    return float(per_class.mean())
