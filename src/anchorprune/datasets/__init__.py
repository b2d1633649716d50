"""Data sets: webdataset tars, your own folders, the bundled photos and clip-benchmark's zoo, all as one map-style
`EvalDataset`.

Each source is one file of this folder, or of another package (`plugins`). Importing them imports no torch: the command
line checks names with them.
"""

from __future__ import annotations

import functools
import os
import warnings
from typing import Any

from anchorprune import plugins
from anchorprune.datasets import prompts
from anchorprune.datasets.base import COLUMNS, MOST_CLASSES, DataSpec, EvalDataset, Source, Transform
from anchorprune.datasets.names import COLLECTIONS
from anchorprune.errors import FieldError, FieldWarning
from anchorprune.files import lines_of, read_text
from anchorprune.reading import filled

__all__ = [
    "DataSpec",
    "EvalDataset",
    "Source",
    "check_dataset",
    "dataset_root",
    "default_task",
    "expand_names",
    "open_dataset",
    "sources",
    "stamp",
]

TASK = "zeroshot_classification"  # what data is opened for when nothing else is said


@functools.cache
def sources() -> dict[str, type[Source]]:
    """Every source of this folder and of installed packages, by name. UserError as in `plugins.found`."""
    return plugins.found(Source, __name__)  # type: ignore[type-abstract]


def open_dataset(spec: DataSpec, transform: Transform, task: str = TASK) -> EvalDataset:
    """The data set that `spec` means.

    `wds/NAME`, `folder:PATH` and `bundled` bring their class names and templates, which the custom files override;
    `language` and `annotation_file` concern the zoo only, as upstream.

    Raises:
        UserError: whatever can be wrong with the name, the files or the custom files.
    """
    source = _source_of(spec)
    if source.reads_custom_files:
        dataset = source.open(spec, transform, task)
    else:
        # read first: a mistake in a small file should not wait for a download
        classes = prompts.custom_classes(spec.classnames, spec.name) if spec.classnames else None
        templates = prompts.custom_templates(spec.templates, spec.name) if spec.templates else None
        dataset = source.open(spec, transform, task)
        dataset.classes = classes or dataset.classes
        dataset.templates = templates or dataset.templates
        if spec.language != "en" and task == TASK and not spec.templates:
            _check_language(spec, dataset)
    prompts.check_prompts(spec.name, dataset.classes, dataset.templates)
    _check_targets(dataset)
    return dataset


def _check_language(spec: DataSpec, dataset: EvalDataset) -> None:
    """Of data whose names and prompts are what its files say, in whatever language.

    UserError where there are no such files and the prompts are our own, which are English.
    """
    if spec.name == "bundled" or dataset.templates == prompts.GENERAL_TEMPLATES:
        said = f"the prompts of {spec.name} are English; give en, or prompts in that language by "
        raise FieldError("language", spec.language, f"{said}templates.", typed=f"{said}--custom_template_file.")
    said = f"the class names and prompts of {spec.name} are those of its own files, whatever the language"
    warnings.warn(FieldWarning(said, said), stacklevel=3)


def check_dataset(spec: DataSpec, task: str = TASK) -> None:
    """Raise UserError for what is wrong with a data set as far as that is known without downloading it."""
    _source_of(spec).check(spec, task)


def default_task(spec: DataSpec) -> str:
    """The task that `--task auto` means for a data set: what its files say that it is, else its name."""
    return _source(spec.name).default_task(spec)


def stamp(spec: DataSpec) -> Any:
    """What tells the data that `spec` means today from other data of the same name (`Source.stamp`)."""
    return _source(spec.name).stamp(spec)


def _source(name: str) -> type[Source]:
    """Whose data set this is; what nobody claims is looked for in the zoo, which knows what to say of it."""
    return next((source for source in sources().values() if source.claims(name)), sources()["zoo"])


def _source_of(spec: DataSpec) -> type[Source]:
    """The same; UserError where columns, or a file of captions, are named of data that has none."""
    source = _source(spec.name)
    if os.path.exists(spec.annotation_file) and not os.path.isfile(spec.annotation_file):
        raise FieldError("annotation_file", spec.annotation_file, "is not a regular file; name a file of captions")
    if spec.annotation_file and not source.reads_annotations:
        fix = f"{spec.name} has no captions in a file apart; leave it out"
        raise FieldError("annotation_file", spec.annotation_file, fix)
    for field in COLUMNS:
        if not source.reads_columns and (given := getattr(spec, field)) is not None:
            raise FieldError(field, given, f"{spec.name} is no table; leave it out")
    return source


def _check_targets(dataset: EvalDataset) -> None:
    """UserError where a known target has no class name: it could only be counted wrong."""
    if dataset.targets is None or (dataset.classes is None and dataset.kind != "classes"):
        return
    if dataset.classes is None:
        for key, target in zip(dataset.keys, dataset.targets, strict=True):
            if target >= MOST_CLASSES:
                fix = (
                    f"sample {key} has label {target}, and there can be no more than {MOST_CLASSES:,} classes; fix it."
                )
                raise FieldError("dataset", dataset.name, fix)
        return
    count = len(dataset.classes)
    for key, target in zip(dataset.keys, dataset.targets, strict=True):
        if dataset.kind == "labels" and len(target) != count:
            problem = f"has {len(target)} labels"
        elif dataset.kind == "classes" and not 0 <= target < count:
            problem = f"has label {target}"
        else:
            continue
        raise FieldError(
            "dataset",
            dataset.name,
            f"sample {key} {problem}, but there are {count} class names; fix the label or the class names.",
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
        lines = lines_of(read_text(name))
    except (OSError, ValueError) as err:
        raise FieldError("dataset", name, f"cannot be read as a list of data set names ({err}).") from err
    listed = [entry for line in lines if line for entry in COLLECTIONS.get(line, [line])]
    if not listed:
        raise FieldError("dataset", name, "the file is empty; write one data set name a line.")
    return listed


def dataset_root(template: str, name: str) -> str:
    """`--dataset_root` with `{dataset}` and `{dataset_cleaned}` filled in.

    Both are the name without `wds/`; in the cleaned one each `/` is a `-`.

    Raises UserError for another placeholder or a stray brace.
    """
    short = name.removeprefix("wds/")
    try:
        return filled(template, dataset=short, dataset_cleaned=short.replace("/", "-"))
    except ValueError as err:
        raise FieldError(
            "dataset_root",
            template,
            "the placeholders are {dataset} and {dataset_cleaned}; "
            "write {{ and }} for braces that are part of the path.",
        ) from err
