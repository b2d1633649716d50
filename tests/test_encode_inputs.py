"""What `anchorprune.encode` reads: tars, tables, lists of paths; and what it refuses to."""

from __future__ import annotations

import csv
import http.server
import io
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from support.encoded import (
    embeddings,
    expected,
    make_photos,
    make_tar,
    make_tars,
    png,
    pq,
    request,
    table,
    tiny_model,
)
from support.material import picture

import anchorprune
from anchorprune import Compute, LoadedModel, ModelSpec, UserError
from anchorprune.datasets.sampling import BadImage
from anchorprune.embeddings.files import in_folder
from anchorprune.embeddings.inputs import open_input
from anchorprune.embeddings.request import EncodeRequest


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return tiny_model()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


# --- tars


def test_tars_are_read_in_order_with_what_stands_beside_the_images(model: LoadedModel, tmp_path: Path) -> None:
    folder = make_tars(tmp_path / "tars")
    anchorprune.encode(request(folder, keep_columns=("txt", "url"), dtype="fp32"), tmp_path / "out", model=model)
    rows = table(tmp_path / "out").to_pylist()
    assert [row["id"] for row in rows] == [f"{t:05d}.tar/{n:04d}" for t in range(3) for n in range(4)]
    assert (rows[5]["txt"], rows[5]["url"]) == ("picture 1 1", "u1")
    (tmp_path / "one.png").write_bytes(png(11))
    torch.testing.assert_close(
        embeddings(tmp_path / "out")[5:6], expected(model, [tmp_path / "one.png"]), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("pattern", ["{00000..00002}.tar", "0000{0,1,2}.tar", "*.tar", "0000[0-2].tar"])
def test_patterns_name_the_tars_that_they_mean(model: LoadedModel, tmp_path: Path, pattern: str) -> None:
    folder = make_tars(tmp_path / "tars")
    anchorprune.encode(request(folder / pattern), tmp_path / "out", model=model)
    assert table(tmp_path / "out").num_rows == 12


def test_a_damaged_tar_gives_what_it_has_and_a_failure(model: LoadedModel, tmp_path: Path) -> None:
    folder = make_tars(tmp_path / "tars")
    data = (folder / "00001.tar").read_bytes()
    cut = data.find(b"0002.txt") - 3000
    (folder / "00001.tar").write_bytes(data[:cut])
    (folder / "00002.tar").write_bytes(b"<html>")
    found = anchorprune.encode(request(folder), tmp_path / "out", model=model)
    failures = {row["id"]: row["reason"] for row in pq.read_table(tmp_path / "out" / "failures.parquet").to_pylist()}
    assert {"00001.tar", "00002.tar"} <= failures.keys()
    assert "not a readable, uncompressed tar" in failures["00002.tar"]
    assert found["rows"] >= 6
    assert table(tmp_path / "out")["id"].to_pylist()[:4] == [f"00000.tar/{n:04d}" for n in range(4)]


def test_samples_of_tars_without_an_image_are_said(model: LoadedModel, tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", {"1": {"png": png(1)}, "2": {"txt": b"alone"}, "3": {"png": png(3)}})
    with pytest.warns(UserWarning, match="1 samples of the tars have no image"):
        found = anchorprune.encode(request(tmp_path / "a.tar"), tmp_path / "out", model=model)
    assert found["rows"] == 2


def test_tars_at_an_address_are_downloaded_once(model: LoadedModel, tmp_path: Path) -> None:
    folder = make_tars(tmp_path / "tars")
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(folder))

        def log_request(self, *_: object) -> None:
            asked.append(self.path)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/{{00000..00002}}.tar"
        for out in ("first", "second"):
            source = request(address, cache_dir=str(tmp_path / "cache"))
            anchorprune.encode(source, tmp_path / out, model=model)
        with pytest.raises(UserError, match=r"00003.tar': the server has no such file"):
            anchorprune.encode(
                request(address.replace("2}", "3}"), cache_dir=str(tmp_path / "cache")), "x", model=model
            )
        server.shutdown()
    assert asked == [*(f"/{t:05d}.tar" for t in range(3)), "/00003.tar"]
    anchorprune.encode(request(folder), tmp_path / "local", model=model)
    assert table(tmp_path / "second").equals(table(tmp_path / "local"))


def test_one_tar_named_twice_is_refused(model: LoadedModel, tmp_path: Path) -> None:
    tar = str(make_tar(tmp_path / "a.tar", {"1": {"png": png(1)}}))
    with pytest.raises(UserError, match="is there twice"):
        anchorprune.encode(request((tar, tar)), tmp_path / "out", model=model)


# --- tables


CAPTIONS = ["a dog", 'a cat, "sitting"', "eine Tür", "", "a tree"]


def bytes_table(folder: Path, rows: int = 12, name: str = "images.parquet") -> Path:
    """Images as Hugging Face's `datasets` keeps them, in row groups of 5, with an integer column beside them."""
    pa = pytest.importorskip("pyarrow")
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(rows)]
    table = pa.table({"image": images, "uid": [1000 + i for i in range(rows)], "size": list(range(rows))})
    pq.write_table(table, folder / name, row_group_size=5)
    return folder / name


@pytest.mark.parametrize("workers", [0, 2])
def test_bytes_in_a_parquet_file_are_encoded_and_columns_keep_their_types(
    model: LoadedModel, tmp_path: Path, workers: int
) -> None:
    compute = Compute(device="cpu", precision="fp32", batch_size=4, num_workers=workers)
    asked = request(bytes_table(tmp_path), keep_columns=("size",), dtype="fp32", compute=compute, rows_per_shard=7)
    anchorprune.encode(asked, tmp_path / "out", model=model)
    found = table(tmp_path / "out")
    assert found["id"].to_pylist() == [f"images.parquet:{i + 1}" for i in range(12)]
    assert str(found["size"].type) == "int64"
    assert found["size"].to_pylist() == list(range(12))
    paths = [tmp_path / f"{i}.png" for i in range(12)]
    for i, path in enumerate(paths):
        path.write_bytes(png(i))
    torch.testing.assert_close(embeddings(tmp_path / "out"), expected(model, paths), atol=1e-5, rtol=0)


def test_a_column_may_name_the_rows(model: LoadedModel, tmp_path: Path) -> None:
    anchorprune.encode(request(bytes_table(tmp_path), id_column="uid"), tmp_path / "out", model=model)
    assert table(tmp_path / "out")["id"].to_pylist() == [str(1000 + i) for i in range(12)]


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("named", [False, True])
def test_tables_of_paths_are_read_with_their_captions(
    model: LoadedModel, tmp_path: Path, ending: str, named: bool
) -> None:
    pa = pytest.importorskip("pyarrow")
    rows = [{"file": f"{i}.png", "key": f"k{i}", "caption": text} for i, text in enumerate(CAPTIONS)]
    for i in range(len(rows)):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    path = tmp_path / f"table.{ending}"
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif ending == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="," if ending == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    asked = request(path, texts="caption", dtype="fp32", id_column="key" if named else None)
    anchorprune.encode(asked, tmp_path / "out", model=model)
    whole = [i for i, text in enumerate(CAPTIONS) if text]
    assert table(tmp_path / "out")["id"].to_pylist() == [f"k{i}" if named else f"{i}.png" for i in whole]
    assert table(tmp_path / "out")["caption"].to_pylist() == [CAPTIONS[i] for i in whole]
    paths = [tmp_path / f"{i}.png" for i in whole]
    torch.testing.assert_close(embeddings(tmp_path / "out"), expected(model, paths), atol=1e-5, rtol=0)


def test_a_folder_of_tables_is_read_in_the_order_of_their_names(model: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    folder.mkdir()
    for name in ("b.parquet", "a.parquet"):
        bytes_table(folder, 3, name)
    anchorprune.encode(request(folder), tmp_path / "out", model=model)
    assert table(tmp_path / "out")["id"].to_pylist() == [f"{n}.parquet:{i}" for n in "ab" for i in (1, 2, 3)]


def test_rows_without_an_image_are_failures(model: LoadedModel, tmp_path: Path) -> None:
    rows = [{"image": "0.png"}, {"image": None}, {"image": "https://example.org/1.png"}, {"image": "none.png"}]
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    found = anchorprune.encode(request(tmp_path / "t.jsonl"), tmp_path / "out", model=model)
    assert (found["rows"], found["failures"]) == (1, 3)
    reasons = pq.read_table(tmp_path / "out" / "failures.parquet")["reason"].to_pylist()
    assert "row 2: has no path" in reasons[0]
    assert "https://example.org/1.png" in reasons[1]
    assert "No such file" in reasons[2]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"keep_columns": ("siz",)}, "keep_columns='siz': .*images.parquet has no such column.* Did you mean 'size'"),
        ({"id_column": "key"}, "id_column='key': .* its columns: image, uid, size"),
        ({"texts": "caption"}, "texts='caption': .* has no such column"),
        ({"texts": "size"}, "texts='size': is a column of int64; texts are what is encoded"),
        ({"id_column": "image"}, "id_column='image': is a column of struct<.* in .*images.parquet; ids are texts or"),
        ({"image_column": "size"}, "column 'size' is int64; images are paths, bytes"),
    ],
)
def test_a_column_that_is_not_there_or_of_another_type_is_refused(
    model: LoadedModel, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        anchorprune.encode(request(bytes_table(tmp_path), **fields), tmp_path / "out", model=model)


# --- lists, and what is none of it


def test_a_list_of_paths_is_read_line_by_line(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    lines = ["photos/group 1/deep/1.png", "", str(photos / "group 2/deep/2.png"), "photos/none.png"]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    anchorprune.encode(request(tmp_path / "list.txt", keep_columns=("txt",)), tmp_path / "out", model=model)
    rows = table(tmp_path / "out").to_pylist()
    assert [(row["id"], row["txt"]) for row in rows] == [(lines[0], "number 1"), (lines[2], "number 2")]
    assert pq.read_table(tmp_path / "out" / "failures.parquet")["id"].to_pylist() == ["photos/none.png"]


def test_an_id_that_is_there_twice_is_said_and_is_two_rows(
    model: LoadedModel, photos: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    names = [str(path) for path in sorted(photos.rglob("*.png"))[:3]]
    for lines, said in (
        (names, []),
        ([*names, names[1]], [f"1 image has an id that is there already, such as {names[1]!r}; each is a row"]),
        (
            [*names, names[2], names[1], names[1]],
            [f"3 images have an id that is there already, such as {names[2]!r}; each is a row"],
        ),
    ):
        (tmp_path / "list.txt").write_text("\n".join(lines))
        anchorprune.encode(request(tmp_path / "list.txt"), tmp_path / f"out{len(lines)}", model=model)
        assert table(tmp_path / f"out{len(lines)}")["id"].to_pylist() == lines
        assert [str(warning.message) for warning in recwarn] == said
        recwarn.clear()


def test_names_that_are_no_utf8_are_written_so_that_they_can_be_read(model: LoadedModel, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    picture(1).save(io.BytesIO(), "PNG")
    with open(os.fsencode(folder) + b"/caf\xe9.png", "wb") as file:
        file.write(png(1))
    anchorprune.encode(request(folder), tmp_path / "out", model=model)
    assert table(tmp_path / "out")["id"].to_pylist() == [r"caf\xe9.png"]


def test_a_folder_that_links_to_itself_is_listed_once(model: LoadedModel, photos: Path, tmp_path: Path) -> None:
    (photos / "again").symlink_to(photos)
    assert anchorprune.encode(request(photos), tmp_path / "out", model=model)["rows"] == 10


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere", "what it is cannot be told by its name"),
        ("nowhere.tar", "no such file or folder"),
        ("*.tar", "no file or folder is called so"),
        ("empty", "holds no image"),
        ("mixed", "holds image and tars: say which with input_format"),
        ("https://example.org/list.txt", "of addresses only tars can be read"),
    ],
)
def test_an_input_that_cannot_be_is_one_sentence_and_leaves_nothing(
    model: LoadedModel, here: Path, source: str, said: str
) -> None:
    (here / "empty").mkdir()
    make_tars(here / "mixed")
    picture(1).save(here / "mixed" / "1.png")
    with pytest.raises(UserError, match=f"^input='{source}".replace("*", r"\*") + f".*{said}"):
        anchorprune.encode(request(source), "out", model=model)
    assert not Path("out").exists()


@pytest.mark.parametrize("field", ["image_column", "id_column"])
def test_a_column_of_what_is_no_table_is_refused(model: LoadedModel, photos: Path, here: Path, field: str) -> None:
    with pytest.raises(UserError, match=f"^{field}='uid': {photos} is no table; leave it out$"):
        anchorprune.encode(request(photos, **{field: "uid"}), "out", model=model)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"format": "npz"}, "format='npz': choose one of parquet, npy"),
        ({"dtype": "int8"}, "dtype='int8'"),
        ({"rows_per_shard": 0}, "rows_per_shard=0: must be 1 or more"),
        ({"max_failures": 2}, "max_failures=2: is a share"),
        ({"on_error": "fail", "max_failures": 0.5}, "max_failures=0.5: has no say where the first failure ends all"),
        ({"keep_columns": ("id",)}, "keep_columns='id': the output has a column of its own"),
        ({"keep_columns": ("a", "a")}, "name each column once"),
        ({"input": ()}, "input="),
    ],
)
def test_a_request_that_cannot_be_is_refused_at_once(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        request(**{"source": "photos", **fields} if "input" not in fields else {"source": "x", **fields})
    assert said in str(caught.value)


def test_a_link_to_itself_is_a_failure_among_the_images(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("b.png")
    listing = in_folder(str(tmp_path))
    assert [listing.ids[row] for row in range(len(listing))] == ["a.png", "b.png"]
    with pytest.raises(BadImage, match=r"b\.png"):
        listing.read(1)


@pytest.mark.parametrize("name", ["x.parquet", "x.csv", "x.tar", "x.txt"])
def test_a_pipe_as_input_is_refused_and_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match="is neither a regular file nor a folder"):
        open_input(EncodeRequest(input=(str(tmp_path / name),), model=ModelSpec(name="m")))
