"""What a request reads, by the flags that name it: no output may be one of these."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from anchorprune import bundled
from anchorprune.datasets.base import DataSpec
from anchorprune.datasets.remote import is_url
from anchorprune.datasets.table import image_files
from anchorprune.errors import UserError
from anchorprune.evaluation.request import Request
from anchorprune.fields import Fields
from anchorprune.files import user_cache
from anchorprune.models.base import ModelSpec
from anchorprune.outputs import Read
from anchorprune.strategies import Wanted
from anchorprune.strategies.cascade import Cascade

# Of the formats of photographs; a table may name any file with one of these beside it.
_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".jfif")
_TENSORS = (".pt", ".pth")  # what is saved beside a result; no data set is made of these


def reads_of(request: Request) -> Iterator[Read]:
    """Every file and folder that the request names."""
    yield from model_reads(request.model)
    yield from data_reads(request.data)
    yield from field_reads(request.task)
    if request.pruning:
        yield from field_reads(request.pruning)
    compute = request.compute
    for name, kept in (("clf_cache", compute.clf_cache), ("feature_root", compute.feature_root)):
        if kept:
            yield Read(name, kept)
    if compute.clf_cache is None:
        with suppress(UserError):  # of a user without a home
            yield Read("clf_cache", user_cache())


def field_reads(fields: Fields) -> Iterator[Read]:
    """The files that the fields of a task or a strategy name, and those of a cascade's stages."""
    for field in dataclasses.fields(fields):
        if field.metadata.get("file"):
            value = getattr(fields, field.name)
            for path in value if isinstance(value, tuple) else (value,):
                if path:
                    yield Read(field.name, path)
    if isinstance(fields, Cascade):
        for stage in fields.strategies:
            if stage:
                yield from field_reads(stage)


def strategy_reads(wanted: Iterable[Wanted] | None) -> Iterator[Read]:
    """The files of strategies to try."""
    for one in wanted or ():
        yield from field_reads(one.strategy)


def model_reads(model: ModelSpec) -> Iterator[Read]:
    """The files of a model: its weights, its folder, and where downloads are kept."""
    if (model.name, model.pretrained) == (bundled.MODEL, bundled.TAG):
        yield Read("the bundled model's weights", bundled.WEIGHTS)
    elif model.pretrained:
        yield Read("pretrained", model.pretrained)
    folder = model.name.removeprefix("local-dir:")
    if os.path.isdir(folder) and (model.library != "open_clip" or folder != model.name):
        yield Read("model", folder)
    if model.cache_dir:
        yield Read("model_cache_dir", model.cache_dir)


def data_reads(data: DataSpec) -> Iterator[Read]:
    """The files and folders of a data set, and what is given with it."""
    for name, path in (
        ("annotation_file", data.annotation_file),
        ("custom_classname_file", data.classnames),
        ("custom_template_file", data.templates),
        ("wds_cache_dir", data.cache_dir),
    ):
        if path:
            yield Read(name, path)
    kind, _, place = data.name.partition(":")
    if kind == "table":
        named = os.path.expanduser(place.replace("{split}", data.split))
        for file in glob.glob(named) if "*" in named else [named]:
            yield Read("dataset", file)
            yield Read("dataset", Path(file).parent, endings=_IMAGES)
        yield Read("dataset", named, names=partial(image_files, data))
    elif kind == "folder":
        yield Read("dataset", os.path.expanduser(place), passed_over=_TENSORS)
    elif not is_url(data.root):
        yield Read("dataset_root", os.path.expanduser(data.root), passed_over=_TENSORS)
