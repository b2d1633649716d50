"""What a data set is to the rest: where it comes from (`DataSpec`, `Source`) and, opened, its samples (`EvalDataset`).

Imports no torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from anchorprune.datasets.names import default_task
from anchorprune.fields import check_range

Transform = Callable[[Any], Any]
KINDS = ("images", "classes", "labels", "captions", "choices")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Which samples: a data set by its name, and what is taken of it.

    Attributes:
        name: `wds/NAME`, `folder:PATH`, `table:FILE`, `bundled`, or one that clip-benchmark knows.
        root: folder or URL of the data, finished (without placeholders).
        split: which part of it.
        language: of class names and prompts.
        annotation_file: captions, for data sets that keep them apart.
        classnames, templates: JSON files of one's own, as `--custom_classname_file` and `--custom_template_file`.
        image_column, caption_column, label_column: of a table; None: the one that has a usual name.
        cache_dir: where downloads are kept; None: in the user's cache.
        limit: so many samples, chosen by `seed`; None: all.
        seed: of that choice.
        skip_bad_images: whether images that cannot be read are counted and passed over, or end the evaluation.
    """

    name: str
    root: str = "root"
    split: str = "test"
    language: str = "en"
    annotation_file: str = ""
    classnames: str | None = None
    templates: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    label_column: str | None = None
    cache_dir: str | None = None
    limit: int | None = None
    seed: int = 0
    skip_bad_images: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None:
            check_range("limit", self.limit, 1, fix="must be 1 or more, and no more than data can hold")
        check_range("seed", self.seed)


MOST_CLASSES = 10_000_000  # an index above is no class, and asks for the memory of as many
COLUMNS = ("image_column", "caption_column", "label_column")


class Items(Protocol):
    """`items[i] -> (transformed image, target)`; an image that cannot be read raises `sampling.BadImage`."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@dataclass
class EvalDataset:
    """One data set, opened: any sample in any order, decoded when asked for.

    Attributes:
        name: as the user typed it.
        items: `items[i] -> (transform(image), target)`; the target is what `kind` says.
        keys: one stable identity a sample: what `limit` hashes and what a bad image is called.
        classes: class names by index, or None where the data set has none.
        templates: prompts with `{c}`, or finished prompts by class name; None where the data set has none.
        kind: what a target is: `images`, nothing (0); `classes`, a class index (int); `labels`, a float tensor [C] of 0
            and 1; `captions`, a list of texts, one or more, of the image; `choices`, a list of texts to choose from,
            the first of which is the image's (the image may be [n, 3, H, W] then, one for each text).
        targets: every target without decoding an image, where the source can tell.
    """

    name: str
    items: Items
    keys: Sequence[str]
    classes: list[str] | None
    templates: list[str] | dict[str, list[str]] | None
    kind: str = "classes"
    targets: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)


class Source(ABC):
    """Where data sets of one kind come from. `NAME:…` names its data sets, unless `claims` says otherwise."""

    name: ClassVar[str]
    # Whether it reads the files of one's own class names and prompts itself; otherwise they replace its own.
    reads_custom_files: ClassVar[bool] = False
    # Whether it has columns, which the fields of that name choose.
    reads_columns: ClassVar[bool] = False
    # Whether captions of its data may lie in a file apart from it, which `annotation_file` names.
    reads_annotations: ClassVar[bool] = False

    @classmethod
    def claims(cls, name: str) -> bool:
        """Whether this name of a data set is one of its own."""
        return name.startswith(f"{cls.name}:")

    @classmethod
    @abstractmethod
    def open(cls, spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
        """The data set. UserError for everything that can be wrong with its name or files."""

    @classmethod
    def default_task(cls, spec: DataSpec) -> str:
        """The task that `--task auto` means for it; UserError where that has to be read and cannot be."""
        return default_task(spec.name)

    @classmethod
    def stamp(cls, spec: DataSpec) -> Any:
        """What tells this data from other data of the same name, for a request's hash: JSON, or None."""
        return None

    @classmethod
    def check(cls, spec: DataSpec, task: str) -> None:
        """Raise UserError for what is wrong with it, as far as that is known without downloading it."""
        cls.open(spec, lambda image: image, task)
