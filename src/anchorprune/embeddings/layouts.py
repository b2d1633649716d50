"""How embeddings lie in the output folder: Parquet, or clip-retrieval's .npy files."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from anchorprune.embeddings.request import EncodeRequest
from anchorprune.files import writing

Array = np.ndarray[Any, Any]


@dataclass
class Rows:
    """The embeddings of a shard and what was carried along, in the input's order.

    Attributes:
        ids: in UTF-8.
        paths: where a person finds each image.
        embeddings: `[rows, D]`.
        texts: `[rows, D]`, of the texts; None where none were asked for.
        columns: Arrow arrays by name, the texts' among them.
    """

    ids: list[str]
    paths: list[str]
    embeddings: Array
    texts: Array | None
    columns: dict[str, pa.Array]


class Layout(ABC):
    """Where a shard's files are and what is in them."""

    def __init__(self, folder: Path, shards: int) -> None:
        self.folder, self.shards = folder, shards

    @abstractmethod
    def folders(self, *, texts: bool) -> list[Path]: ...

    @abstractmethod
    def files(self, shard: int, request: EncodeRequest) -> list[Path]:
        """What a shard with rows has."""

    @abstractmethod
    def write(self, shard: int, rows: Rows, request: EncodeRequest, about: dict[str, str]) -> None:
        """Each file whole or not at all."""


class Parquet(Layout):
    """embeddings/00000.parquet …: `id`, `embedding`, `text_embedding` and the columns carried along."""

    def folders(self, *, texts: bool) -> list[Path]:
        return [self.folder / "embeddings"]

    def files(self, shard: int, request: EncodeRequest) -> list[Path]:
        return [self.folder / "embeddings" / f"{shard:05d}.parquet"]

    def write(self, shard: int, rows: Rows, request: EncodeRequest, about: dict[str, str]) -> None:
        columns: dict[str, Any] = {"id": pa.array(rows.ids, pa.string()), "embedding": _vectors(rows.embeddings)}
        if rows.texts is not None:
            columns["text_embedding"] = _vectors(rows.texts)
        columns |= {name: rows.columns[name] for name in request.columns}
        table = pa.table(columns).replace_schema_metadata(about)
        (file,) = self.files(shard, request)
        # Embeddings look random: neither a dictionary nor compression makes them smaller, both take time.
        dense = ["embedding.list.element", "text_embedding.list.element"]
        others = [name for name in columns if not name.endswith("embedding")]
        with writing(file) as out:
            pq.write_table(
                table,
                out,
                use_dictionary=others,
                compression=dict.fromkeys(others, "zstd") | dict.fromkeys(dense, "none"),
                write_statistics=["id"],
            )


class Npy(Layout):
    """clip-retrieval's: img_emb/img_emb_0.npy, text_emb/text_emb_0.npy and metadata/metadata_0.parquet.

    Numbers have as many digits as clip-retrieval gives them; a shard without rows has no files.
    """

    def folders(self, *, texts: bool) -> list[Path]:
        names = ["img_emb", "metadata", *(["text_emb"] if texts else [])]
        return [self.folder / name for name in names]

    def files(self, shard: int, request: EncodeRequest) -> list[Path]:
        number = str(shard).zfill(int(math.log10(self.shards)) + 1)
        names = [f"img_emb/img_emb_{number}.npy", f"metadata/metadata_{number}.parquet"]
        names += [f"text_emb/text_emb_{number}.npy"] if request.texts else []
        return [self.folder / name for name in names]

    def write(self, shard: int, rows: Rows, request: EncodeRequest, about: dict[str, str]) -> None:
        if not rows.ids:
            return
        images, metadata, *texts = self.files(shard, request)
        columns: dict[str, Any] = {"image_path": pa.array(rows.paths, pa.string())}
        if request.texts:
            columns["caption"] = rows.columns[request.texts]
        columns |= {name: rows.columns[name] for name in request.keep_columns if name not in columns}
        for path, embeddings in ((images, rows.embeddings), *zip(texts, [rows.texts], strict=False)):
            assert embeddings is not None
            with writing(path) as file:
                np.save(file, embeddings)
        with writing(metadata) as out:
            pq.write_table(pa.table(columns).replace_schema_metadata(about), out)


LAYOUTS = {"parquet": Parquet, "npy": Npy}


def _vectors(embeddings: Array) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(embeddings.reshape(-1)), embeddings.shape[1])
