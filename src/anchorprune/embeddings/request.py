"""What embeddings are asked for: a model and its pruning, the images, and how they are written. No torch."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from anchorprune.datasets.remote import is_url
from anchorprune.errors import FieldError, UserError, did_you_mean
from anchorprune.evaluation.request import Compute, ModelSpec, spec_of
from anchorprune.fields import check_range
from anchorprune.files import fingerprint
from anchorprune.strategies.base import Strategy

INPUT_FORMATS = ("auto", "folder", "tars", "table", "list")
FORMATS = ("parquet", "npy")
FOLDERS = {  # of the output, by its format
    "parquet": ("shards", "embeddings"),
    "npy": ("shards", "img_emb", "metadata", "text_emb"),
}
DTYPES = {"fp16": "float16", "fp32": "float32"}
VERSION = 1  # of `as_dict`'s form


@dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """Which images to encode with what, and how the embeddings are written.

    Attributes:
        input: one path or several: a folder, tars, tables or lists of paths; globs, `{00..99}` and URLs of tars too.
        input_format: one of `INPUT_FORMATS`; `auto` goes by the names of the files.
        image_column, id_column: of a table; None: the column of images is found, and an id is a path, or file and row.
        keep_columns: columns of a table, or what stands beside an image (`txt`, a key of its `json`), to carry along.
        texts: the column whose texts are encoded too.
        limit, seed: only so many images, chosen by the seed whatever their order.
        cache_dir: where tars from URLs are kept; None: in the user's cache.
        pruning: None for the unpruned model.
        fast_decode: whether JPEG files are decoded at a reduced size, and resized straight to a coarser grid.
        format: one of `FORMATS`; `npy` is clip-retrieval's layout.
        dtype: of the embeddings, one of `DTYPES`.
        normalize: whether they have length 1.
        rows_per_shard: images whose embeddings go into one file.
        on_error: `skip` makes a row of failures.parquet of an image that cannot be encoded, `fail` stops.
        max_failures: share of the images, 0 … 1, of which more may not fail.
    """

    input: tuple[str, ...] | str
    model: ModelSpec
    pruning: Strategy | None = None
    compute: Compute = Compute()
    input_format: str = "auto"
    image_column: str | None = None
    id_column: str | None = None
    keep_columns: tuple[str, ...] = ()
    texts: str | None = None
    limit: int | None = None
    seed: int = 0
    cache_dir: str | None = None
    fast_decode: bool = False
    format: str = "parquet"
    dtype: str = "fp16"
    normalize: bool = True
    rows_per_shard: int = 10_000
    on_error: str = "skip"
    max_failures: float = 1.0

    def __post_init__(self) -> None:
        for name in ("input", "keep_columns"):
            value = getattr(self, name)
            object.__setattr__(self, name, (value,) if isinstance(value, str) else tuple(map(os.fspath, value)))
        if not self.input or not all(self.input):
            raise FieldError("input", self.input, "name a folder, tars, a table or a list of images")
        for name, choices in (
            ("input_format", INPUT_FORMATS),
            ("format", FORMATS),
            ("dtype", tuple(DTYPES)),
            ("on_error", ("skip", "fail")),
        ):
            if (value := getattr(self, name)) not in choices:
                fix = f"choose one of {', '.join(choices)}.{did_you_mean(str(value), choices)}"
                raise FieldError(name, value, fix)
        check_range("rows_per_shard", self.rows_per_shard, 1, fix="must be 1 or more, and no more than a file can hold")
        if self.limit is not None:
            check_range("limit", self.limit, 1, fix="must be 1 or more, and no more than data can hold")
        check_range("seed", self.seed)
        if not 0 <= self.max_failures <= 1:
            raise FieldError("max_failures", self.max_failures, "is a share of the images, 0 … 1")
        if self.on_error == "fail" and self.max_failures != 1:
            said = "has no say where the first failure ends all"
            raise FieldError("max_failures", self.max_failures, f"{said} (on_error)", typed=f"{said} (--on_error fail)")
        own = {"id", "embedding", "text_embedding", "image_path", "caption"} & set(self.keep_columns)
        if own - ({"caption"} if self.texts != "caption" and self.format == "parquet" else set()):
            taken = sorted(own)[0]
            raise FieldError("keep_columns", taken, "the output has a column of its own of this name")
        if self.pruning and self.pruning.acts == "stages" and getattr(self.pruning, "gate_texts", None) is None:
            said = "has no texts to tell by which images are unsure; give "
            raise FieldError("strategy", self.pruning.name, f"{said}gate_texts", typed=f"{said}--gate_texts")
        if len(set(self.keep_columns)) < len(self.keep_columns):
            raise FieldError("keep_columns", self.keep_columns, "name each column once")

    @property
    def columns(self) -> tuple[str, ...]:
        """What is read beside the image."""
        return tuple(dict.fromkeys([*self.keep_columns, *([self.texts] if self.texts else [])]))

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it; `from_dict` reads it."""
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "version": VERSION,
            **{name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()},
            "model": self.model.as_dict(),
            "pruning": self.pruning.as_dict() if self.pruning else None,
            "compute": dataclasses.asdict(self.compute),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EncodeRequest:
        """The request that `as_dict` gave. UserError for something else, or a value that cannot be."""
        fields = dict(content) if isinstance(content, Mapping) else {}
        if (version := fields.pop("version", None)) != VERSION:
            raise UserError(f"a request to encode of version {version!r}: this anchorprune reads version {VERSION}")
        try:
            fields["model"], fields["compute"] = (
                spec_of(ModelSpec, fields["model"]),
                spec_of(Compute, fields["compute"]),
            )
            fields["pruning"] = None if fields["pruning"] is None else Strategy.from_dict(fields["pruning"])
            return spec_of(cls, fields)
        except (KeyError, TypeError) as error:
            raise UserError(f"a request to encode cannot be read ({error})") from error

    def identity(self) -> dict[str, Any]:
        """What of it decides the output, by the names of flags; who computes it where is left out.

        The weights, what comes of the precision on a device, and the list of images are added to it when they are
        known (`store.Store`).
        """
        strategy: dict[str, Any] = {"strategy": None}
        if self.pruning:
            strategy = {"strategy": self.pruning.name, **self.pruning.by_content(_content)}
        coupled = self.pruning is not None and self.pruning.couples_batch
        return {
            "input": [each if is_url(each) else os.path.abspath(each) for each in self.input],
            "image_column": self.image_column,
            "id_column": self.id_column,
            "keep_columns": list(self.keep_columns),
            "texts": self.texts,
            "limit": self.limit,
            "seed": self.seed if self.limit or not self.model.pretrained else None,
            "model": self.model.name,
            "model_type": self.model.library,
            **strategy,
            "batch_size": self.compute.batch_size if coupled else None,
            "fast_decode": self.fast_decode,
            "format": self.format,
            "dtype": self.dtype,
            "normalize": self.normalize,
            "rows_per_shard": self.rows_per_shard,
        }


def _content(path: str) -> str:
    """What stands for a strategy's file; its name where there is none."""
    return fingerprint(path) if os.path.isfile(path) else path
