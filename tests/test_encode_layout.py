"""`--format npy` is clip-retrieval's layout: its names, its types, read by autofaiss and by clip-retrieval itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
from support.killed import TRANSFORM
from support.material import picture
from support.models import make_clip

import anchorprune
from anchorprune import Compute, EncodeRequest, LoadedModel, ModelSpec

pq = pytest.importorskip("pyarrow.parquet")

COUNT = 23


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """23 images, one of them broken, in shards of 5, with texts and a column carried along."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(COUNT):
        picture(i, 40).save(folder / f"{i:02d}.png")
        (folder / f"{i:02d}.txt").write_text(f"number {i}")
        (folder / f"{i:02d}.json").write_text(f'{{"url": "u{i}"}}')
    (folder / "11.png").write_bytes(b"broken")
    encode(folder, folder / "out", 5)
    return folder / "out"


def encode(folder: Path, out: Path, rows_per_shard: int, **fields: Any) -> dict[str, Any]:
    request = EncodeRequest(
        input=str(folder),
        model=ModelSpec(name="tiny"),
        compute=Compute(device="cpu", precision="fp32", batch_size=4, num_workers=0),
        format="npy",
        texts="txt",
        keep_columns=("url",),
        rows_per_shard=rows_per_shard,
        **fields,
    )
    model = LoadedModel(make_clip(), TRANSFORM, open_clip.get_tokenizer("ViT-B-32"))
    return anchorprune.encode(request, out, model=model)


def test_files_are_called_as_clip_retrieval_calls_them(out: Path) -> None:
    for folder, ending in (("img_emb", "npy"), ("text_emb", "npy"), ("metadata", "parquet")):
        assert sorted(p.name for p in (out / folder).iterdir()) == [f"{folder}_{i}.{ending}" for i in range(5)]


def test_numbers_have_as_many_digits_as_the_greatest_of_them_needs(out: Path, tmp_path: Path) -> None:
    """clip-retrieval: `str(i).zfill(int(log10(partitions)) + 1)`, so that 10 partitions have two digits already."""
    encode(out.parent, tmp_path / "twelve", 2)
    names = sorted(p.name for p in (tmp_path / "twelve" / "metadata").iterdir())
    assert names == [f"metadata_{i:02d}.parquet" for i in range(12)]


def test_rows_of_the_three_are_of_one_image(out: Path) -> None:
    for i in range(5):
        images, texts = (np.load(out / name / f"{name}_{i}.npy") for name in ("img_emb", "text_emb"))
        metadata = pq.read_table(out / "metadata" / f"metadata_{i}.parquet")
        assert images.dtype == texts.dtype == np.float16
        assert images.shape == texts.shape == (metadata.num_rows, 16)
        assert metadata.schema.names == ["image_path", "caption", "url"]
        for row in metadata.to_pylist():
            number = int(Path(row["image_path"]).stem)
            assert Path(row["image_path"]).is_file()
            assert (row["caption"], row["url"]) == (f"number {number}", f"u{number}")
    assert sum(len(np.load(p)) for p in (out / "img_emb").iterdir()) == COUNT - 1


def test_a_shard_without_an_image_has_no_files(out: Path, tmp_path: Path) -> None:
    found = encode(out.parent, tmp_path / "single", 1)
    assert (found["finished"], found["rows"]) == (True, 22)
    assert not (tmp_path / "single" / "img_emb" / "img_emb_11.npy").exists()


def test_autofaiss_builds_an_index_that_finds_each_image_by_itself(out: Path) -> None:
    autofaiss = pytest.importorskip("autofaiss")
    index, _ = autofaiss.build_index(
        embeddings=str(out / "img_emb"),
        save_on_disk=False,  # under NumPy 2, which it was not made for, it cannot write what it measured
        max_index_memory_usage="100MB",
        current_memory_available="1GB",
        nb_cores=1,
    )
    images = np.concatenate([np.load(out / "img_emb" / f"img_emb_{i}.npy") for i in range(5)]).astype(np.float32)
    _, nearest = index.search(images, 1)
    assert nearest[:, 0].tolist() == list(range(COUNT - 1))


def test_clip_retrievals_back_end_finds_the_metadata_of_each_row(out: Path) -> None:
    clip_back = pytest.importorskip("clip_retrieval.clip_back")
    provider = clip_back.ParquetMetadataProvider(str(out / "metadata"))
    found = provider.get(range(COUNT - 1), ["image_path", "caption", "url"])
    assert [each["caption"] for each in found] == [f"number {i}" for i in range(COUNT) if i != 11]
