"""What a task is: its fields, what it prepares once, and the meter that each way of pruning gets.

A task's fields are flags of the command line, keys of the request's JSON and part of its hash, as a strategy's are.
Imports no torch.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from anchorprune.datasets.base import EvalDataset, Transform
from anchorprune.errors import FieldError
from anchorprune.fields import Fields, option
from anchorprune.models.base import LoadedModel
from anchorprune.progress import QUIET, Reporting
from anchorprune.strategies.base import Strategy

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

    from anchorprune.datasets.sampling import Batch

__all__ = ["Bench", "EncodeSplit", "Meter", "Outcomes", "Task", "option"]


@dataclass(frozen=True, eq=False)
class Outcomes:
    """What became of each sample in one evaluation, in the data set's order.

    Attributes:
        keys: n names, those of `EvalDataset.keys`, or what else a task scores one by one.
        scores: float64 `[n]`, 0 … 1, whose mean is the task's primary metric.
        details: what else is known of each, whole numbers `[n]` by name, such as `targets` and `predictions`; where a
            sample has several keys, `samples`: which one each is of, counted from 0.

    Raises:
        ValueError: not one number of that kind for each key.
    """

    keys: tuple[str, ...]
    scores: NDArray[np.float64]
    details: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(self.keys))
        object.__setattr__(self, "scores", self._array("scores", self.scores, "iufb").astype("float64"))
        if not ((self.scores >= 0) & (self.scores <= 1)).all():  # false for NaN too
            raise ValueError("scores are not all between 0 and 1")
        details = {name: self._array(name, value, "iu").astype("int64") for name, value in self.details.items()}
        object.__setattr__(self, "details", details)

    @classmethod
    def of_classes(cls, keys: tuple[str, ...], targets: ArrayLike, predictions: ArrayLike) -> Outcomes:
        """Of single-label classification: the class that each image has and the one it was given."""
        import numpy as np  # here, so that `--help` does not wait for it

        of = cls(keys, np.zeros(len(keys)), {"targets": np.asarray(targets), "predictions": np.asarray(predictions)})
        return dataclasses.replace(of, scores=of.details["targets"] == of.details["predictions"])

    def _array(self, name: str, value: ArrayLike, kinds: str) -> NDArray[Any]:
        import numpy as np

        array = np.asarray(value)
        if array.shape != (len(self.keys),) or array.dtype.kind not in kinds:
            what = "whole number" if kinds == "iu" else "number"
            raise ValueError(
                f"{name} are {array.dtype} {list(array.shape)}, not one {what} for each of {len(self.keys)} samples"
            )
        return array


class Meter(Protocol):
    """The metrics of one way of pruning, batch by batch; of several shards they are merged."""

    def update(self, out: Tensor, batch: Batch) -> None:
        """Take what `Task.forward` gave for a batch."""

    def merge(self, other: Any) -> None:
        """Take what another meter of the same task saw: samples of its own."""

    def compute(self) -> dict[str, float]:
        """The metrics, by name. The same whatever the order of the batches and of the merges."""

    def scores(self) -> Outcomes | None:
        """What became of each sample, in the data set's order; None where the metric is none of single samples.

        Only where `Bench.keep_scores` asked for it.
        """


EncodeSplit = Callable[[EvalDataset], Iterator[tuple["Tensor", "Batch"]]]


@dataclass
class Bench:
    """What a task has to work with.

    Attributes:
        loaded: the model, unpruned.
        dataset: what is evaluated.
        open_split: another split of the same data set, by name.
        device, autocast: what to compute on and in.
        precision: what that is called, to name what is cached.
        cache_dir: where what was made of texts may be kept; None: nowhere.
        keep_scores: whether meters have to know each sample's score.
        seed, batch_size: of what a task trains.
        reporting: how a task that takes its time tells how far it is.
    """

    loaded: LoadedModel
    dataset: EvalDataset
    open_split: Callable[[str], EvalDataset]
    device: torch.device
    autocast: Callable[[], AbstractContextManager[Any]]
    precision: str
    cache_dir: str | None = None
    keep_scores: bool = False
    seed: int = 0
    batch_size: int = 64
    reporting: Reporting = QUIET


@contextmanager
def split_of(field: str, name: str) -> Iterator[None]:
    """What is wrong with the split within is said of the task's field that names it."""
    try:
        yield
    except FieldError as error:
        if error.field != "split":
            raise
        raise FieldError(field, name, error.fix, typed=error.typed) from error


@dataclass(frozen=True)
class Task(Fields, ABC):
    """What is measured: a frozen dataclass of its settings."""

    name: ClassVar[str]
    # Which of `EvalDataset.kind` it takes.
    kinds: ClassVar[tuple[str, ...]] = ("classes",)
    # Of which of it meters know each sample's score; None: of all.
    scored_kinds: ClassVar[tuple[str, ...] | None] = None
    # Whether it trains something, so that the seed and the batch size decide its result.
    trains: ClassVar[bool] = False
    # Whether what `forward` gives, which must not depend on the task's fields then, is kept for the next run.
    keeps_features: ClassVar[bool] = False
    # Whether `prepare` makes a classifier of texts, by which a cascade can tell how sure an answer is.
    classifies: ClassVar[bool] = False
    # Whether `forward` reads features of images alone (`encode_image`), which is what a cascade gives.
    reads_features: ClassVar[bool] = True

    @property
    @abstractmethod
    def primary(self) -> str:
        """The metric that ways of pruning are compared by: a share, 0 … 1, more is better."""

    @property
    def needs_text_tower(self) -> bool:
        """Whether a model without one is refused before the work."""
        return False

    @property
    def splits(self) -> dict[str, str]:
        """The other splits that it opens, by the fields that name them."""
        return {}

    def as_dict(self) -> dict[str, Any]:
        """`{"task": name, field: value, …}`, as a request's JSON has it."""
        return {"task": self.name, **self.values()}

    def check(self) -> None:
        """Raise UserError for what can be found wrong before a model is loaded, such as a file that is not there."""
        return

    def check_pruning(self, strategy: Strategy) -> None:
        """Raise FieldError for a strategy that cannot do what this task measures."""
        if strategy.acts != "stages":
            return
        if not self.reads_features:
            raise FieldError("strategy", strategy.name, f"gives features, and {self.name} reads tokens; name another")
        if not self.classifies and getattr(strategy, "gate_texts", None) is None:
            said = f"{self.name} has no classifier that says which images are unsure; give "
            raise FieldError("strategy", strategy.name, f"{said}gate_texts", typed=f"{said}--gate_texts")

    def transform(self, own: Transform) -> Transform:
        """What becomes of each image as it is read, by the model's own transform."""
        return own

    def forward(self, model: Any, images: Tensor) -> Tensor:
        """What is measured of the pruned model, under autocast: the images' features, normalised, in float32.

        Args:
            images: `[B, 3, H, W]`, or `[B, n, 3, H, W]` where a sample has n.

        Returns:
            `[B, D]`, or `[B, n, D]`.
        """
        from torch.nn import functional as F

        features = F.normalize(model.encode_image(images.flatten(0, -4)).float(), dim=-1)
        return features.unflatten(0, images.shape[:-3])

    @abstractmethod
    def prepare(self, bench: Bench) -> Any:
        """What all ways of pruning share, made once by the unpruned model: a classifier, say.

        Raises:
            UserError: data, or a model, that the task cannot use.
        """

    @abstractmethod
    def meter(self, prepared: Any, encode_split: EncodeSplit) -> Meter:
        """A meter for one way of pruning.

        Args:
            prepared: what `prepare` gave.
            encode_split: gives what `forward` gives of all samples of another split, batch by batch, through the same
                pruning.
        """

    def artifacts(self, prepared: Any) -> dict[str, Any]:
        """What of it somebody may want to keep, by name; tensors."""
        return {}
