"""The linear probe: a linear classifier on the images' features, trained on another split.

The mathematics, the names and the order of random draws are those of clip-benchmark 1.6.2 (`metrics/linear_probe.py`),
whose functions the tests hold it against; docs/compatibility.md says where it deviates. The search for a weight decay
follows A.3 of https://arxiv.org/abs/2103.00020.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from anchorprune.datasets.base import EvalDataset
from anchorprune.errors import FieldError, FieldWarning, UserError
from anchorprune.progress import QUIET, Reporting
from anchorprune.tasks.base import Bench, EncodeSplit, Outcomes, Task, option, split_of
from anchorprune.tasks.counting import ClassCounts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch

DECAYS = 97  # weight decays, 1e-6 … 100, equally far apart by their logarithms
COARSE = 16  # every so manieth is tried first,
STEPS = (8, 4, 2, 1)  # then those so far from the best


@dataclass(frozen=True)
class LinearProbe(Task):
    """A linear classifier, trained on the features of another split, through the same pruning."""

    name: ClassVar[str] = "linear_probe"
    trains: ClassVar[bool] = True
    keeps_features: ClassVar[bool] = True

    train_split: str = option("train", "what the probe is trained on")
    val_split: str | None = option(None, "the weight decay is chosen on this split", kind=str)
    val_proportion: float | None = option(None, "the same on this share of the train split, 0 … 1", kind=float)
    fewshot_k: int = option(-1, "images of each class to train on; -1: all")
    fewshot_epochs: int = option(10, "times that the probe sees them")
    fewshot_lr: float = option(0.1, "learning rate at the start; it falls to 0 by a cosine")
    normalize: bool = option(True, "True or False: whether features get length 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.val_split is not None and self.val_proportion is not None:
            raise FieldError(
                "val_proportion",
                self.val_proportion,
                "excludes val_split; give one of them",
                typed="excludes --val_split; give one of them",
            )
        if self.val_proportion is not None and not 0 < self.val_proportion < 1:
            raise FieldError("val_proportion", self.val_proportion, "must be between 0 and 1")
        if self.fewshot_k == 0:
            raise FieldError("fewshot_k", 0, "must be 1 or more, or -1 for all images")
        if self.fewshot_epochs < 1:
            raise FieldError("fewshot_epochs", self.fewshot_epochs, "must be 1 or more")
        if not 0 < self.fewshot_lr < 1e37:  # ten times that is no float32, which torch refuses to step by
            raise FieldError("fewshot_lr", self.fewshot_lr, "must be a number above 0 and below 1e37")

    @property
    def primary(self) -> str:
        return "lp_acc1"

    @property
    def splits(self) -> dict[str, str]:
        return {name: split for name in ("train_split", "val_split") if (split := getattr(self, name)) is not None}

    def forward(self, model: Any, images: Tensor) -> Tensor:
        """Features as they are, in float32: what is kept of them serves with and without `normalize`."""
        features: Tensor = model.encode_image(images).float()
        return features

    def prepare(self, bench: Bench) -> Prepared:
        splits = {field: self._opened(bench, field, name) for field, name in self.splits.items()}
        train = splits["train_split"]
        prepared = Prepared(self, bench, train, splits.get("val_split"))
        if train.targets is not None:  # too few shots are found before anything is encoded
            targets = prepared.of_this_data(train, train.targets)
            prepared.chosen(targets[prepared.parts(range(len(train)))[0]])
        return prepared

    def meter(self, prepared: Prepared, encode_split: EncodeSplit) -> Probe:
        return prepared.probe(encode_split)

    def _opened(self, bench: Bench, field: str, name: str) -> EvalDataset:
        with split_of(field, name):
            found = bench.open_split(name)
        if found.kind != "classes":
            raise FieldError(field, name, f"has {found.kind}; linear_probe needs classes")
        if found is bench.dataset:
            said = "is the split that is evaluated: the probe has seen its images"
            warnings.warn(FieldWarning(f"{field}={name!r} {said}", f"--{field} {name} {said}"), stacklevel=2)
        return found


@dataclass(frozen=True)
class Samples:
    """Features `[n, D]`, float32, and classes `[n]`, long, on one device."""

    features: Tensor
    targets: Tensor

    def of(self, rows: Tensor) -> Samples:
        rows = rows.to(self.targets.device)
        return Samples(self.features[rows], self.targets[rows])

    def __add__(self, other: Samples) -> Samples:
        import torch

        return Samples(torch.cat([self.features, other.features]), torch.cat([self.targets, other.targets]))


@dataclass(frozen=True)
class Prepared:
    """The splits that a probe learns from, opened."""

    task: LinearProbe
    bench: Bench
    train: EvalDataset
    val: EvalDataset | None

    def probe(self, encode_split: EncodeSplit) -> Probe:
        """The probe of one way of pruning, trained."""
        task, bench = self.task, self.bench
        indices, encoded = self._encoded(encode_split, self.train)
        of_train, of_val = self.parts(indices.tolist())
        train, val = encoded.of(of_train), encoded.of(of_val) if task.val_proportion is not None else None
        if self.val is not None:
            val = self._encoded(encode_split, self.val)[1]
        if not len(train.targets) or (val is not None and not len(val.targets)):
            raise UserError(f"{bench.dataset.name}: no image is left to train or to validate the probe on")
        few = train.of(self.chosen(train.targets.cpu()))
        final = few if val is None or task.fewshot_k > 0 else few + val
        classes = 1 + max(int(train.targets.max()), int(final.targets.max()))

        def trained(samples: Samples, decay: float) -> tuple[Tensor, Tensor]:
            return train_probe(
                samples.features,
                samples.targets,
                classes,
                weight_decay=decay,
                lr=task.fewshot_lr,
                epochs=task.fewshot_epochs,
                batch_size=bench.batch_size,
                seed=bench.seed,
                reporting=bench.reporting,
            )

        decay: float = 0
        if (held_out := val) is not None:
            decay = best_decay(lambda each: _right(*trained(few, each), held_out))
        weight, bias = trained(final, decay)
        if not _finite(weight, bias):
            raise FieldError("fewshot_lr", task.fewshot_lr, "the training diverges; lower it")
        return Probe(self, weight, bias, decay)

    def parts(self, indices: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Which rows of the encoded samples, the `indices` of the train split, are trained on, and validated on.

        The split is cut before any is encoded, so that nothing but the seed and its length decides how.
        """
        import torch

        known = torch.tensor(list(indices), dtype=torch.long)
        row_of = torch.full((len(self.train),), -1)
        row_of[known] = torch.arange(len(known))
        kept = len(row_of)
        if (share := self.task.val_proportion) is not None:
            kept -= math.floor(len(row_of) * share)
            row_of = row_of[torch.randperm(len(row_of), generator=self._generator())]
        return row_of[:kept][row_of[:kept] >= 0], row_of[kept:][row_of[kept:] >= 0]

    def chosen(self, targets: Tensor) -> Tensor:
        """The rows to train on, in the order of a permutation: all, or of each class the first `fewshot_k`.

        Raises:
            UserError: a class that has fewer.
        """
        import torch

        k = self.task.fewshot_k
        order = torch.randperm(len(targets), generator=self._generator())
        if k < 0:
            return order
        counts, names = targets.bincount(), self.bench.dataset.classes or []
        if short := ((counts > 0) & (counts < k)).nonzero().flatten().tolist():
            first = short[0]
            name = repr(names[first]) if first < len(names) else str(first)
            more = f" (and {len(short) - 1} more classes have too few)" if len(short) > 1 else ""
            raise FieldError("fewshot_k", k, f"class {name} has {int(counts[first])} images to train on{more}")
        taken, rows = dict[int, int](), []
        for row, target in zip(order.tolist(), targets[order].tolist(), strict=True):
            if taken.setdefault(target, 0) < k:
                taken[target] += 1
                rows.append(row)
        return torch.tensor(rows)

    def of_this_data(self, dataset: EvalDataset, targets: Any) -> Tensor:
        """Classes of another split, numbered as in the split that is evaluated: by their names where these differ.

        Raises:
            UserError: names that do not tell classes apart, or a class that cannot be.
        """
        import torch

        numbers = torch.as_tensor(targets, dtype=torch.long)
        if len(numbers) and int(numbers.min()) < 0:
            raise UserError(f"{dataset.name}: a sample to train on has the class {int(numbers.min())}")
        ours, theirs = self.bench.dataset.classes, dataset.classes
        if ours is None or theirs is None or ours == theirs:
            return numbers
        if len(set(ours)) < len(ours) or len(set(theirs)) < len(theirs):
            raise UserError(f"{dataset.name}: its splits have different class names, and one of them twice")
        places = {name: i for i, name in enumerate([*ours, *(name for name in theirs if name not in set(ours))])}
        return torch.tensor([places[name] for name in theirs], dtype=torch.long)[numbers]

    def scaled(self, features: Tensor) -> Tensor:
        """As the probe sees them."""
        from torch.nn import functional as F

        return F.normalize(features, dim=-1) if self.task.normalize else features

    def _encoded(self, encode_split: EncodeSplit, dataset: EvalDataset) -> tuple[Tensor, Samples]:
        """Which samples of the split, and they themselves, in its order."""
        import torch

        parts = [(batch.indices, out.cpu(), batch.targets) for out, batch in encode_split(dataset)]
        if not parts:
            raise UserError(f"{dataset.name}: no image can be read of a split that the probe learns from")
        indices, features, targets = (torch.cat(each) for each in zip(*parts, strict=True))
        device = self.bench.device
        return indices, Samples(self.scaled(features.to(device)), self.of_this_data(dataset, targets).to(device))

    def _generator(self) -> torch.Generator:
        import torch

        return torch.Generator().manual_seed(self.bench.seed)


def train_probe(
    features: Tensor,
    targets: Tensor,
    classes: int,
    *,
    weight_decay: float,
    lr: float,
    epochs: int,
    batch_size: int,
    seed: int,
    reporting: Reporting = QUIET,
) -> tuple[Tensor, Tensor]:
    """Weight `[classes, D]` and bias `[classes]` of a linear classifier, trained by AdamW with cross-entropy.

    The learning rate falls from `lr` to 0 by a cosine, step by step. Always in float32. They are not finite where the
    training diverges: AdamW multiplies weights by 1 - lr * weight_decay, at 0.1 * 100 by -9 in each of the first steps.

    Args:
        features: `[n, D]`, float32.
        targets: `[n]`, below `classes`.
        seed: of the first weights and of the order in every epoch.
        reporting: how it tells how far it is.
    """
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F

    device, generator = features.device, torch.Generator().manual_seed(seed)
    weight, bias = torch.empty(classes, features.shape[1]), torch.empty(classes)
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)  # as nn.Linear draws them
    bound = 1 / math.sqrt(features.shape[1])
    nn.init.uniform_(bias, -bound, bound, generator=generator)
    parameters = [nn.Parameter(weight.to(device)), nn.Parameter(bias.to(device))]
    optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay)
    step, steps = 0, epochs * -(-len(targets) // batch_size)
    with reporting.of(f"probe, weight decay {weight_decay:.1e}", steps, unit="step", leave=False) as told:
        for _ in range(epochs):
            _draw(generator)  # a DataLoader seeds its workers, then its sampler
            order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(_draw(generator)))
            for rows in order.to(device).split(batch_size):
                optimizer.param_groups[0]["lr"] = float(0.5 * (1 + np.cos(np.pi * step / steps)) * lr)
                optimizer.zero_grad()
                with torch.enable_grad():
                    loss = F.cross_entropy(F.linear(features[rows], *parameters), targets[rows])
                    loss.backward()
                optimizer.step()
                step += 1
                told.update(1)
    weight, bias = (parameter.detach() for parameter in parameters)
    return weight, bias


def best_decay(right: Callable[[float], int]) -> float:
    """The weight decay with which most is right, looked for coarsely and then around the best; the lower of equals.

    Args:
        right: how much is, with a weight decay; asked once for each.
    """
    import numpy as np

    decays: list[float] = np.logspace(-6, 2, num=DECAYS).tolist()
    known: dict[int, int] = {}

    def best(candidates: Iterable[int]) -> int:
        peak, most = 0, 0
        for i in candidates:
            if i not in known:
                known[i] = right(decays[i])
            if known[i] > most:
                peak, most = i, known[i]
        return peak

    peak = best(range(0, DECAYS, COARSE))
    for step in STEPS:
        peak = best((max(peak - step, 0), peak, min(peak + step, DECAYS - 1)))
    return decays[peak]


class Probe:
    """The metrics of one trained probe."""

    def __init__(self, prepared: Prepared, weight: Tensor, bias: Tensor, weight_decay: float) -> None:
        """`weight [classes, D]` and `bias [classes]`, on the device that features are scored on."""
        self._prepared, self._weight, self._bias, self._weight_decay = prepared, weight, bias, weight_decay
        self._counts = ClassCounts(len(bias), prepared.bench.keep_scores, prepared.bench.dataset.keys)

    def update(self, out: Tensor, batch: Batch) -> None:
        """Take image features `[B, D]`, as `LinearProbe.forward` gives them."""
        features = self._prepared.scaled(out.to(self._bias.device))
        self._counts.update(_logits(self._weight, self._bias, features), batch)

    def merge(self, other: Probe) -> None:
        """Take what the same probe, trained elsewhere, saw."""
        self._counts.merge(other._counts)

    def compute(self) -> dict[str, float]:
        """clip-benchmark's, by its names: shares, 0 … 1, and how the probe was trained."""
        task = self._prepared.task
        return {
            **{f"lp_{name}": value for name, value in self._counts.compute().items()},
            "weight_decay": self._weight_decay,
            "epochs": task.fewshot_epochs,
            "seed": self._prepared.bench.seed,
            "fewshot_k": task.fewshot_k,
            "normalized": task.normalize,
        }

    def scores(self) -> Outcomes | None:
        """Whether each image was recognised, with its class and the one it was given."""
        return self._counts.scores()


def _logits(weight: Tensor, bias: Tensor, features: Tensor) -> Tensor:
    from torch.nn import functional as F

    return F.linear(features, weight, bias)


def _right(weight: Tensor, bias: Tensor, samples: Samples) -> int:
    """How many samples the probe recognises; none where its training has diverged."""
    if not _finite(weight, bias):
        return 0
    best = [_logits(weight, bias, part).argmax(dim=1) for part in samples.features.split(4096)]
    return sum(int((a == b).sum()) for a, b in zip(best, samples.targets.split(4096), strict=True))


def _finite(weight: Tensor, bias: Tensor) -> bool:
    return bool(weight.isfinite().all() and bias.isfinite().all())


def _draw(generator: torch.Generator) -> int:
    import torch

    return int(torch.empty((), dtype=torch.int64).random_(generator=generator))
