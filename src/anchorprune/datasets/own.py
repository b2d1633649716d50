"""Data of your own from Python: any map-style `Dataset`, without a file on disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anchorprune.datasets.base import KINDS, EvalDataset, Transform
from anchorprune.datasets.images import transformed
from anchorprune.datasets.prompts import GENERAL_TEMPLATES
from anchorprune.errors import UserError, did_you_mean


@dataclass(frozen=True)
class OwnDataset:
    """A map-style data set with what a zero-shot classifier needs.

    Attributes:
        samples: `samples[i] -> (image, target)` and a length. The image is what Pillow opens, or a tensor that is
            preprocessed already; the target what `kind` says.
        classes: class names by index; None: `samples.classes`, where it has them.
        templates: prompts with `{c}`, or finished prompts by class name.
        keys: one name a sample; None: its number.
        kind: what the targets are, as in `EvalDataset.kind`.
        splits: other splits of the same data by name, for tasks that train on one.
    """

    samples: Any
    classes: Sequence[str] | None = None
    templates: Sequence[str] | Mapping[str, list[str]] = tuple(GENERAL_TEMPLATES)
    keys: Sequence[str] | None = None
    kind: str = "classes"
    splits: Mapping[str, OwnDataset] = field(default_factory=dict)


@dataclass
class _Items:
    samples: Any
    transform: Transform

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        import torch

        image, target = self.samples[index]
        if not isinstance(image, torch.Tensor):
            image = transformed(self.transform, image, f"item {index}")
        return image, target


def as_eval_dataset(own: Any, name: str, transform: Transform, split: str = "test") -> EvalDataset:
    """`own`, an `OwnDataset` or a bare map-style data set, as the engine takes it.

    Raises:
        UserError: it has no length or no items, an unknown kind, keys that are not as many, or no split of that name.
    """
    if isinstance(own, EvalDataset):
        return own
    if not isinstance(own, OwnDataset):
        own = OwnDataset(own)
    if own.splits:
        if split not in own.splits:
            raise UserError(f"{name}: has no split {split!r}; it has {', '.join(own.splits)}")
        return as_eval_dataset(own.splits[split], name, transform)
    if not hasattr(own.samples, "__getitem__") or not hasattr(own.samples, "__len__"):
        raise UserError(f"{name}: {type(own.samples).__name__} is no map-style data set (__getitem__ and __len__)")
    if own.kind not in KINDS:
        raise UserError(f"{name}: kind={own.kind!r} is none of {', '.join(KINDS)}.{did_you_mean(own.kind, KINDS)}")
    count = len(own.samples)
    if own.keys is not None and len(own.keys) != count:
        raise UserError(f"{name}: {len(own.keys)} keys for {count} samples")
    classes = own.classes if own.classes is not None else getattr(own.samples, "classes", None)
    return EvalDataset(
        name=name,
        items=_Items(own.samples, transform),
        keys=[str(i) for i in range(count)] if own.keys is None else list(own.keys),
        classes=None if classes is None else [str(each) for each in classes],
        templates=dict(own.templates) if isinstance(own.templates, Mapping) else list(own.templates),
        kind=own.kind,
    )
