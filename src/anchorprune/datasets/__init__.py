"""Data sets: webdataset tars, your own folders, the bundled photos and clip-benchmark's zoo, all as one map-style
`EvalDataset`.

Importing this module imports no torch: the command line checks names with it. Each source is one file, imported
when a data set of its kind is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from anchorprune.datasets.names import COLLECTIONS, RETRIEVAL
from anchorprune.errors import UserError

__all__ = ["EvalDataset", "check_dataset", "dataset_root", "default_task", "expand_names", "open_dataset"]


class Items(Protocol):
    """`items[i] -> (transformed image, target)`; an image that cannot be read raises `sampling.BadImage`."""

    def __getitem__(self, index: int, /) -> tuple[Any, Any]: ...


@dataclass
class EvalDataset:
    """One data set, opened: any sample in any order, decoded when asked for.

    name        as the user typed it
    items       `items[i] -> (transform(image), target)`; target is a class index (int), or a float tensor [C]
                of 0 and 1 for multi-label data
    keys        one stable identity a sample: what `--limit` hashes and what a bad image is called
    classes     class names by index, or None where the data set has none
    templates   prompts with `{c}`, or finished prompts by class name; None where the data set has none
    multilabel  what `target` is
    targets     every target without decoding an image, where the source can tell
    """

    name: str
    items: Items
    keys: Sequence[str]
    classes: list[str] | None
    templates: list[str] | dict[str, list[str]] | None
    multilabel: bool = False
    targets: Sequence[Any] | None = None

    def __len__(self) -> int:
        return len(self.keys)


def open_dataset(
    name: str,
    *,
    root: str = "root",
    split: str = "test",
    transform: Callable[[Any], Any],
    task: str = "zeroshot_classification",
    language: str = "en",
    annotation_file: str = "",
    custom_classname_file: str | None = None,
    custom_template_file: str | None = None,
    wds_cache_dir: str | None = None,
) -> EvalDataset:
    """The data set that `--dataset name` means; `root` is a finished path or URL (see `dataset_root`).

    `wds/NAME`, `folder:PATH` and `bundled` bring their class names and templates, which the custom files override;
    `language` and `annotation_file` concern the zoo only, as upstream.

    Raises UserError for everything that can be wrong with the name, the files or the custom files.
    """
    from anchorprune.datasets import prompts

    if _is_ours(name):
        # read first: a mistake in a small file should not wait for a download
        classes = prompts.custom_classes(custom_classname_file, name) if custom_classname_file else None
        templates = prompts.custom_templates(custom_template_file, name) if custom_template_file else None
        if name.startswith("wds/"):
            from anchorprune.datasets.wds import open_wds

            dataset = open_wds(name, root=root, split=split, transform=transform, cache_dir=wds_cache_dir)
        elif name == "bundled":
            from anchorprune.datasets.bundled import open_bundled

            dataset = open_bundled(split=split, transform=transform)
        else:
            from anchorprune.datasets.folder import open_folder

            dataset = open_folder(name, split=split, transform=transform)
        dataset.classes = classes or dataset.classes
        dataset.templates = templates or dataset.templates
    else:
        from anchorprune.datasets.zoo import open_zoo

        dataset = open_zoo(
            name,
            root=root,
            split=split,
            transform=transform,
            task=task,
            language=language,
            annotation_file=annotation_file,
            custom_classname_file=custom_classname_file,
            custom_template_file=custom_template_file,
        )
    prompts.check_prompts(name, dataset.classes, dataset.templates)
    _check_targets(dataset)
    return dataset


def check_dataset(name: str, *, root: str, split: str, **more: Any) -> None:
    """Raise UserError for what is wrong with a data set as far as that is known without downloading it.

    Takes what `open_dataset` takes, without a transform.
    """
    if not _is_ours(name):
        from anchorprune.datasets.zoo import check_name

        check_name(name)
    elif "://" not in root or not name.startswith("wds/"):
        open_dataset(name, root=root, split=split, transform=lambda image: image, **more)


def _is_ours(name: str) -> bool:
    return name.startswith(("wds/", "folder:")) or name == "bundled"


def _check_targets(dataset: EvalDataset) -> None:
    """UserError where a known target has no class name: it could only be counted wrong."""
    if dataset.targets is None or dataset.classes is None:
        return
    count = len(dataset.classes)
    for key, target in zip(dataset.keys, dataset.targets, strict=True):
        if dataset.multilabel and len(target) != count:
            problem = f"has {len(target)} labels"
        elif not dataset.multilabel and not 0 <= target < count:
            problem = f"has label {target}"
        else:
            continue
        raise UserError(
            f"--dataset {dataset.name}: sample {key} {problem}, but there are {count} class names; "
            "fix the label or the class names."
        )


def expand_names(names: list[str]) -> list[str]:
    """Data set names with collections and list files replaced by what they stand for, in order.

    A list file holds one name (or collection) a line; blank lines are skipped. As upstream, a file comes before
    a collection of the same name, and plain names are not checked here.

    Raises UserError for a list file that is empty or not text.
    """
    expanded: list[str] = []
    for name in names:
        expanded += _list_file(name) if os.path.isfile(name) else COLLECTIONS.get(name, [name])
    return expanded


def _list_file(name: str) -> list[str]:
    try:
        lines = [line.strip() for line in Path(name).read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as err:
        raise UserError(f"--dataset {name}: cannot be read as a list of data set names ({err}).") from err
    listed = [entry for line in lines if line for entry in COLLECTIONS.get(line, [line])]
    if not listed:
        raise UserError(f"--dataset {name}: the file is empty; write one data set name a line.")
    return listed


def default_task(name: str) -> str:
    """The task that `--task auto` means for a data set, as upstream's `get_dataset_default_task`."""
    short = name.removeprefix("wds/")
    if short in RETRIEVAL:
        return "zeroshot_retrieval"
    if short.startswith("sugar_crepe") or short == "winoground":
        return "image_caption_selection"
    return "zeroshot_classification"


def dataset_root(template: str, name: str) -> str:
    """`--dataset_root` with `{dataset}` and `{dataset_cleaned}` filled in.

    Both are the name without `wds/`; in the cleaned one each `/` is a `-`.

    Raises UserError for another placeholder or a stray brace.
    """
    short = name.removeprefix("wds/")
    try:
        return template.format(dataset=short, dataset_cleaned=short.replace("/", "-"))
    except (KeyError, IndexError, ValueError, AttributeError) as err:
        raise UserError(
            f"--dataset_root {template}: the placeholders are {{dataset}} and {{dataset_cleaned}}; "
            "write {{ and }} for braces that are part of the path."
        ) from err
