"""The flags that say which data, for commands that take no model, and the `DataSpec` that they make."""

from __future__ import annotations

import argparse

from anchorprune.commands._flags import add_column_flags, add_progress_flags, task_choices
from anchorprune.datasets import dataset_root, default_task
from anchorprune.datasets.base import DataSpec


def add_data_flags(parser: argparse._ActionsContainer) -> None:
    """As in `eval`."""
    add = parser.add_argument
    add(
        "--dataset_root",
        "--dataset-root",
        "-r",
        default="root",
        help="folder or URL of the data; may hold {dataset} and {dataset_cleaned} (default: %(default)s)",
    )
    add("--split", "-s", default="test", help="split to use (default: %(default)s)")
    add(
        "--task",
        default="auto",
        choices=task_choices(),
        metavar="TASK",
        help="which task's samples, where a data set has several (default: its own)",
    )
    add("--annotation_file", default="", help="captions, for retrieval")
    add("--custom_classname_file", default=None, help="JSON: data set -> class names")
    add("--custom_template_file", default=None, help="JSON: data set -> prompts with {c}")
    add("--language", default="en", help="language of class names and prompts (default: %(default)s)")
    add("--wds_cache_dir", default=None, help="where webdataset URLs are kept")
    add_column_flags(parser)
    add("--num_workers", default=4, type=int, help="processes that decode images (default: %(default)s)")
    add("--quiet", dest="verbose", action="store_false", help="print nothing but results, warnings and errors")
    add_progress_flags(parser)


def data_spec(args: argparse.Namespace, name: str, language: str) -> DataSpec:
    """What the flags say of the data set `name`; all of its samples. UserError for a wrong placeholder."""
    return DataSpec(
        name=name,
        root=dataset_root(args.dataset_root, name),
        split=args.split,
        language=language,
        annotation_file=args.annotation_file,
        classnames=args.custom_classname_file,
        templates=args.custom_template_file,
        image_column=args.image_column,
        caption_column=args.caption_column,
        label_column=args.label_column,
        cache_dir=args.wds_cache_dir,
        skip_bad_images=getattr(args, "skip_bad_images", False),
    )


def task_name(args: argparse.Namespace, spec: DataSpec) -> str:
    """The task that the data is opened for."""
    return default_task(spec) if args.task == "auto" else str(args.task)
