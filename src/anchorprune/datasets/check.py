"""Every sample of a data set read once: which are bad, how the classes are filled, how large the images are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from anchorprune.datasets.base import DataSpec, EvalDataset
from anchorprune.datasets.sampling import loader
from anchorprune.progress import Reporting, reporting_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

_BATCH = 32


@dataclass
class Report:
    """What was found in a data set.

    Attributes:
        samples: how many there are, bad ones included.
        bad: (key, reason) of those whose image cannot be read, in order.
        per_class: how many good samples each class has, by its name or, where there are none, its index.
        captions: the least and the most that a good sample has; None for other kinds.
        width, height: the least and the most of the good images, in pixels; None where there are none.
    """

    dataset: str
    split: str
    kind: str
    samples: int
    bad: list[tuple[str, str]] = field(default_factory=list)
    per_class: dict[str, int] | None = None
    captions: tuple[int, int] | None = None
    width: tuple[int, int] | None = None
    height: tuple[int, int] | None = None

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**vars(self), "bad": [{"key": key, "reason": reason} for key, reason in self.bad]}

    def to_text(self) -> str:
        """What `anchorprune datasets check` prints."""
        found = f"{len(self.bad)} of them cannot be read" if self.bad else "all can be read"
        lines = [f"{self.dataset} ({self.split}): {self.samples} samples, {found}"]
        if self.per_class:
            lines.append(f"  {_balance(self.per_class)}")
        if self.captions:
            lines.append(f"  captions: {_span(self.captions)} a sample")
        if self.width and self.height:
            lines.append(f"  images: {_span(self.width)} px wide, {_span(self.height)} px high")
        return "\n".join([*lines, *(f"  bad: {key}: {reason}" for key, reason in self.bad)])


def check_samples(
    dataset: EvalDataset, spec: DataSpec, *, num_workers: int = 0, progress: bool | Reporting = False
) -> Report:
    """Reads every sample of a data set that was opened with the transform `size_of`, in worker processes."""
    report = Report(spec.name, spec.split, dataset.kind, len(dataset))
    counts: Counter[int] = Counter()
    texts: list[int] = []
    batches = loader(dataset, range(len(dataset)), batch_size=_BATCH, num_workers=num_workers)
    with reporting_of(progress).of(spec.name, len(dataset)) as told:
        for batch in batches:
            report.bad += batch.bad
            told.update(len(batch.indices) + len(batch.bad))
            if batch.images is None:
                continue
            if batch.images.shape[-1] == 2:  # not so where a source made tensors of its own
                sizes = batch.images.reshape(-1, 2)
                report.width, report.height = _wider(report.width, sizes[:, 0]), _wider(report.height, sizes[:, 1])
            if dataset.kind == "classes":
                counts.update(batch.targets.tolist())
            elif dataset.kind == "labels":
                counts.update({i: int(n) for i, n in enumerate(batch.targets.sum(0).tolist())})
            else:
                texts += [min(map(len, batch.targets)), max(map(len, batch.targets))]
    if dataset.kind in ("classes", "labels"):
        report.per_class = _by_class(counts, dataset.classes)
    if texts:
        report.captions = min(texts), max(texts)
    return report


def size_of(image: Image) -> Tensor:
    """The transform that `check_samples` needs: width and height, `[2]`."""
    import torch

    return torch.tensor(image.size)


def _by_class(counts: Counter[int], classes: Sequence[str] | None) -> dict[str, int]:
    if classes is None:
        return {str(i): counts[i] for i in sorted(counts)}
    # ImageNet has two cranes and two maillots
    return {name if classes.count(name) == 1 else f"{name} ({i})": counts[i] for i, name in enumerate(classes)}


def _wider(span: tuple[int, int] | None, values: Tensor) -> tuple[int, int]:
    low, high = int(values.min()), int(values.max())
    return (low, high) if span is None else (min(span[0], low), max(span[1], high))


def _balance(per_class: dict[str, int]) -> str:
    least, most = (pick(per_class, key=lambda name: per_class[name]) for pick in (min, max))
    line = f"classes: {len(per_class)}, {_span((per_class[least], per_class[most]))} samples in each"
    if per_class[least] != per_class[most]:
        line += f" (fewest {least!r}, most {most!r})"
    empty = [name for name, count in per_class.items() if not count]
    return f"{line}; none of {_some(empty)}" if empty else line


def _some(names: Sequence[str], shown: int = 5) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(map(repr, names[:shown])) + more


def _span(values: Iterable[int]) -> str:
    low, high = values
    return str(low) if low == high else f"{low} to {high}"
