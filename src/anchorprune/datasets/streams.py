"""`vtab/NAME` and `tfds/NAME`: TensorFlow's data sets, which clip-benchmark reads as streams.

A stream has neither items by number nor workers that share it. So it is read once, in order, into a webdataset in the
cache, without loss, and from then on that is what is opened.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

from anchorprune.datasets.base import DataSpec, EvalDataset, Source, Transform
from anchorprune.datasets.export import (
    Layout,
    Parts,
    claimed,
    next_sample,
    parts_of,
    unchanged,
    write_tars,
    write_texts,
)
from anchorprune.datasets.remote import check_inside
from anchorprune.datasets.sampling import BadImage
from anchorprune.datasets.wds import open_wds
from anchorprune.datasets.zoo import build_upstream, class_names
from anchorprune.errors import FieldError
from anchorprune.files import user_cache, write_text
from anchorprune.progress import as_told
from anchorprune.reading import path_of
from anchorprune.terminal import printable

# Of each prefix what has to be there, as it is imported and as it is installed.
_PACKAGES = {
    "vtab": {"task_adaptation": "task_adaptation==0.1", "tensorflow_datasets": "", "tensorflow": ""},
    "tfds": {"tensorflow_datasets": "", "tensorflow": "", "timm": ""},
}
_LAYOUT = Layout(image_format="png")


class Streams(Source):
    """`vtab/NAME` and `tfds/NAME`."""

    name: ClassVar[str] = "streams"

    @classmethod
    def claims(cls, name: str) -> bool:
        return name.startswith(("vtab/", "tfds/"))

    @classmethod
    def open(cls, spec: DataSpec, transform: Transform, task: str) -> EvalDataset:
        root = _copy_of(spec)
        if not _is_copied(root, spec):
            cls.check(spec, task)
            _copy(spec, root)
        return open_wds(spec.name, root=str(root), split=spec.split, transform=transform, cache_dir=None)

    @classmethod
    def check(cls, spec: DataSpec, task: str) -> None:
        if _is_copied(_copy_of(spec), spec):
            return
        needed = _PACKAGES[spec.name.partition("/")[0]]
        if missing := [pip or name for name, pip in needed.items() if importlib.util.find_spec(name) is None]:
            fix = f"needs packages of TensorFlow that are not installed; pip install {' '.join(missing)}"
            raise FieldError("dataset", spec.name, fix)


def _copy_of(spec: DataSpec) -> Path:
    """The folder in the cache. The language is that of the class names, the root where TensorFlow keeps its files."""
    check_inside(spec.split)
    mark = hashlib.sha256(
        f"{os.path.realpath(spec.root)}\0{spec.language}\0{spec.name}".encode("utf-8", "surrogateescape")
    )
    slug = re.sub(r"[^A-Za-z0-9.-]+", "-", spec.name)[:60]
    return path_of(spec.cache_dir or user_cache() / "wds") / f"{slug}-{mark.hexdigest()}"


def _is_copied(root: Path, spec: DataSpec) -> bool:
    return (root / spec.split / "nshards.txt").is_file()


def _copy(spec: DataSpec, root: Path) -> None:
    """Reads the stream into the cache; what is there of an earlier, interrupted copy stays."""
    # its own names and prompts: the user's take their place when it is opened
    own = dataclasses.replace(spec, classnames=None, templates=None)
    stream = build_upstream(own, unchanged, "zeroshot_classification")
    record = {"dataset": spec.name, "split": spec.split, "samples": len(stream)}
    texts = EvalDataset(spec.name, (), (), class_names(stream), getattr(stream, "templates", None))
    folder = root / spec.split
    with claimed(folder, record, "wds_cache_dir"):
        write_texts(root, texts, "wds_cache_dir")
        found, first = next_sample(folder)

        def samples() -> Iterator[tuple[int, Parts]]:
            with as_told().of(f"copying {spec.name}", len(stream)) as told:
                for index, (image, target) in enumerate(stream):
                    if index >= first:
                        try:
                            yield index, parts_of(image, target, "classes", str(_LAYOUT.image_format))
                        except BadImage as err:
                            raise FieldError("dataset", spec.name, f"item {index} {err}") from err
                    told.update(1)

        tars = write_tars(samples(), folder, found, _LAYOUT)
        copied = next_sample(folder)[1]
        if copied != len(stream):
            fix = f"gave {copied} of the {len(stream)} images that it promises; remove {folder} and try again"
            raise FieldError("dataset", spec.name, fix)
        write_text(f"{tars}\n", folder / "nshards.txt")
    said = f"{spec.name} ({spec.split}): {copied} images, kept as a webdataset in {root}"
    print(printable(said), file=sys.stderr)
