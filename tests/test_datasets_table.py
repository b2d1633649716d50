"""`table:FILE`: CSV, TSV, JSON lines and Parquet of images with labels, captions or both."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from support.material import World, command, evaluated, picture

from anchorprune.datasets import DataSpec, EvalDataset, default_task, open_dataset
from anchorprune.datasets.sampling import BadImage, loader
from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.request import Compute, ModelSpec, Request

CLASSES, CAPTIONS = "zeroshot_classification", "zeroshot_retrieval"


def pixels(image: Any) -> bytes:
    return image.tobytes()


def opened(file: Path, task: str = CLASSES, **fields: Any) -> EvalDataset:
    return open_dataset(DataSpec(name=f"table:{file}", **fields), pixels, task)


def png(seed: int) -> bytes:
    out = io.BytesIO()
    picture(seed).save(out, "PNG")
    return out.getvalue()


def write(file: Path, rows: list[dict[str, Any]]) -> Path:
    """The rows as the file's ending has them."""
    if file.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with file.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]), delimiter="\t" if file.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return file


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with images 0 to 3 in `in/`."""
    (tmp_path / "in").mkdir()
    for i in range(4):
        picture(i).save(tmp_path / "in" / f"{i}.png")
    return tmp_path


ROWS = [
    {"image": "in/0.png", "label": "dog", "caption": "a dog, at sea"},
    {"image": "in/1.png", "label": "cat", "caption": "a cat"},
    {"image": "in/0.png", "label": "dog", "caption": 'a "big" dog'},
    {"image": "in/2.png", "label": "sea lion", "caption": "a sea lion"},
]


# --- what is read


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_each_format_gives_the_same_samples(photos: Path, ending: str) -> None:
    file = write(photos / f"t.{ending}", ROWS)
    labelled = opened(file)
    assert (labelled.kind, labelled.classes) == ("classes", ["cat", "dog", "sea lion"])
    assert labelled.keys == ["in/0.png", "in/1.png", "in/2.png"]
    assert [labelled.items[i] for i in range(3)] == [(pixels(picture(i)), t) for i, t in enumerate([1, 0, 2])]
    captioned = opened(file, CAPTIONS)
    assert captioned.kind == "captions"
    assert captioned.keys == labelled.keys
    [batch] = loader(open_dataset(DataSpec(name=f"table:{file}"), _tensor, CAPTIONS), range(3), **ONE_BATCH)
    assert batch.targets == [["a dog, at sea", 'a "big" dog'], ["a cat"], ["a sea lion"]]


ONE_BATCH = {"batch_size": 3, "num_workers": 0}


def _tensor(image: Any) -> Any:
    from torchvision.transforms.functional import pil_to_tensor

    return pil_to_tensor(image)


def test_the_samples_of_a_table_are_those_of_the_folder_it_lists(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(2):
            picture(i + len(name) * 7 + ord(name[0])).save(tmp_path / name / f"{i}.png")
    folder = open_dataset(DataSpec(name=f"folder:{tmp_path}"), pixels)
    rows = [{"path": key, "class": key.partition("/")[0]} for key in folder.keys]
    table = opened(write(tmp_path / "t.csv", rows))
    assert (table.keys, table.classes, table.templates) == (folder.keys, folder.classes, folder.templates)
    assert [table.items[i] for i in range(4)] == [folder.items[i] for i in range(4)]


def test_labels_are_names_or_indices_of_the_class_names_beside_the_table(photos: Path) -> None:
    rows = [{"image": f"in/{i}.png", "label": label} for i, label in enumerate(["2", "0", "1.0"])]
    file = write(photos / "t.csv", rows)  # 1.0 is what pandas makes of 1
    assert (opened(file).classes, opened(file).targets) == (None, [2, 0, 1])
    (photos / "classnames.txt").write_text("\ufeffcow\r\nant\r\nbee\r\n", encoding="utf-8")
    assert (opened(file).classes, opened(file).targets) == (["cow", "ant", "bee"], [2, 0, 1])
    named = write(photos / "n.csv", [{"image": "in/0.png", "label": "bee"}, {"image": "in/1.png", "label": "cow"}])
    assert opened(named).targets == [2, 0]  # by name: the ant that is not there moves nobody
    custom = photos / "names.json"
    custom.write_text(json.dumps({"n.csv": ["a cow", "a bee"]}))
    assert opened(named, classnames=str(custom)).targets == [0, 1]  # as many as there are: in sorted order
    custom.write_text(json.dumps({"n.csv": ["cow", "be", "ant"]}))
    with pytest.raises(UserError, match=r"2 labels and the 3 class names do not match: 'bee' .*Did you mean 'be'"):
        opened(named, classnames=str(custom))


def test_several_labels_a_row_are_a_multi_label_data_set(photos: Path) -> None:
    rows = [{"image": "in/0.png", "labels": ["dog", "cat"]}, {"image": "in/1.png", "labels": []}]
    dataset = opened(write(photos / "t.jsonl", [*rows, {"image": "in/2.png", "labels": ["owl"]}]))
    assert (dataset.kind, dataset.classes) == ("labels", ["cat", "dog", "owl"])
    assert [target.tolist() for target in dataset.targets] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_a_list_of_captions_is_one_samples(photos: Path) -> None:
    file = write(photos / "t.jsonl", [{"file_name": "in/0.png", "text": ["one", "two"]}])
    assert opened(file, CAPTIONS).targets == [("one", "two")]
    assert default_task(DataSpec(name=f"table:{file}")) == CAPTIONS
    assert default_task(DataSpec(name=f"table:{write(photos / 't.csv', ROWS)}")) == CLASSES


def test_a_column_says_the_split_or_the_files_name_does(photos: Path) -> None:
    rows = [{"image": f"in/{i}.png", "label": "abba"[i], "split": "train" if i % 2 else "test"} for i in range(4)]
    file = write(photos / "t.csv", rows)
    assert (opened(file).keys, opened(file).targets) == (["in/0.png", "in/2.png"], [0, 1])
    train = opened(file, split="train")
    assert (train.keys, train.targets, train.classes) == (["in/1.png", "in/3.png"], [1, 0], ["a", "b"])
    with pytest.raises(UserError, match=r"split='tran': the column 'split' .* has test, train. Did you mean 'train'"):
        opened(file, split="tran")
    write(photos / "my-train.csv", [{"image": "in/3.png", "label": 1}])
    assert opened(photos / "my-{split}.csv", split="train").keys == ["in/3.png"]
    with pytest.raises(UserError, match=r"no such file.*my-test.csv"):
        opened(photos / "my-{split}.csv")
    with pytest.raises(FieldError, match=r"split='train': .* has no column 'split'"):
        opened(photos / "my-train.csv", split="train")
    write(photos / "my-train.csv", [{"image": "in/3.png", "label": "dog"}])
    with pytest.raises(UserError, match=r"may differ from split to split: list all in classnames.txt"):
        opened(photos / "my-{split}.csv", split="train")


def test_several_files_of_equal_columns_are_one_table(photos: Path) -> None:
    write(photos / "part-0.csv", ROWS[:2])
    write(photos / "part-1.csv", ROWS[2:])
    assert opened(photos / "part-*.csv").keys == ["in/0.png", "in/1.png", "in/2.png"]
    write(photos / "part-2.csv", [{"image": "in/3.png", "class": "cat"}])
    with pytest.raises(UserError, match=r"part-2.csv: its columns are not those of .*part-0.csv"):
        opened(photos / "part-*.csv")


# --- Parquet


def hub_rows(*texts: Any) -> list[dict[str, Any]]:
    return [{"image": {"bytes": png(i), "path": None}, "label": i % 2, "text": text} for i, text in enumerate(texts)]


def test_bytes_in_parquet_are_images_with_the_class_names_that_datasets_wrote_down(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    features = {"label": {"names": ["ant", "bee"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.Table.from_pylist(hub_rows("a", "b", "c"))
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    dataset = opened(tmp_path / "t.parquet")
    assert (dataset.classes, dataset.targets) == (["ant", "bee"], [0, 1, 0])
    assert dataset.keys == ["t.parquet:1", "t.parquet:2", "t.parquet:3"]
    for i in (2, 0, 1, 1, 2):  # forwards, backwards, from one row group to the other
        assert dataset.items[i][0] == pixels(picture(i))
    assert pickle.loads(pickle.dumps(dataset.items)).read(2) == png(2)  # what a worker process may get
    plain = [{"img": png(0), "cls": 1}]
    assert opened(write(tmp_path / "p.parquet", plain)).items[0] == (pixels(picture(0)), 1)


def test_rows_with_the_same_bytes_are_one_image_with_several_captions(tmp_path: Path) -> None:
    rows = [{"image": {"bytes": png(i), "path": None}, "text": text} for i, text in ((0, "a"), (1, "b"), (0, "c"))]
    assert opened(write(tmp_path / "t.parquet", rows), CAPTIONS).targets == [("a", "c"), ("b",)]
    for i, row in enumerate(rows):
        row["image"]["path"] = f"{i}.png"
    assert len(opened(write(tmp_path / "t.parquet", rows), CAPTIONS)) == 3  # three files, whatever is in them


def test_a_table_of_many_bytes_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows, size = 8192, 4096
    noise = [bytes([i % 251]) + pickle.dumps(i) * (size // len(pickle.dumps(i))) for i in range(rows)]
    table = pa.table({"image": noise, "label": [0] * rows})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=rows, compression="none", use_dictionary=False)
    total = table.nbytes
    del table, noise
    before = pa.total_allocated_bytes()
    dataset = opened(tmp_path / "t.parquet")
    most = 0
    for i in range(rows):
        assert dataset.items.read(i)[0] == i % 251
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < total / 2  # a page or two of its one row group


# --- what can be wrong


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("t.csv", "image,label\nin/0.png,cat\nin/1.png\n", "t.csv, line 3: has 1 values for 2 columns"),
        ("t.csv", "image,label\nin/0.png,\n", "t.csv, line 2: has no label in column 'label'"),
        ("t.csv", "image,label\n,cat\n", "t.csv, line 2: has no path of an image in column 'image'"),
        ("t.csv", 'image,label\nin/0.png,"cat\n', "t.csv, line 2: cannot be read (unexpected end of data)"),
        (
            "t.csv",
            "image,label\nin/0.png,cat\nin/0.png,dog\n",
            "line 3: in/0.png has the label 'dog', and 'cat' in line 2",
        ),
        ("t.csv", "image,label\nhttp://x/0.png,cat\n", "line 2: http://x/0.png is an address; download"),
        ("t.csv", "image,label\nin/0.png,-1\n", "line 2: the label '-1' has no class"),
        ("t.csv", "image,label\n", "has no rows"),
        ("t.csv", "", "t.csv: is empty"),
        ("t.csv", "image,image,label\n", "has two columns 'image'"),
        ("t.csv", b"image,label\nin/\xff.png,cat\n", "t.csv: is no UTF-8 text"),
        ("t.csv", "photo,label\nin/0.png,cat\n", "no column is called image, images"),
        ("t.csv", "image,path,label\na,b,c\n", "'image' and 'path' may hold images; name one with image_column."),
        ("t.csv", "image,score\na,1\n", "zeroshot_classification needs labels, and no column is called label"),
        ("t.jsonl", '{"image": "in/0.png", "label": 1}\n{"image"\n', "t.jsonl, line 2: is no JSON"),
        ("t.jsonl", "[1]\n", "t.jsonl, line 1: is no JSON object"),
        ("t.jsonl", '{"image": "a", "label": 1}\n\n{"image": "b"}\n', "t.jsonl, line 3: has no 'label', only 'image'"),
        ("t.jsonl", '{"image": 3, "label": 1}\n', "line 1: has no path of an image in column 'image', but '3'"),
        (
            "t.jsonl",
            '{"image": "a", "label": {"x": 1}}\n',
            "line 1: column 'label' holds \"{'x': 1}\", which is no label",
        ),
        ("t.jsonl", '{"image": "a", "label": NaN}\n', "line 1: has no label"),
        ("t.jsonl", '{"image": "a", "label": 0.5}\n', "line 1: column 'label' holds '0.5', which is no label"),
        ("t.jsonl", '{"image": "a", "label": [1]}\n{"image": "b", "label": 1}\n', "line 2: has one label where other"),
        ("t.xlsx", "x", "t.xlsx: a table's file ends in .csv"),
        ("t.parquet", "PAR1 damaged PAR1", "t.parquet: cannot be read"),
    ],
)
def test_a_malformed_table_is_one_sentence_with_file_and_row(
    tmp_path: Path, name: str, content: str | bytes, reason: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=re.escape(reason)) as caught:
        opened(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_column_that_is_named_is_taken_or_refused_by_its_flag(photos: Path) -> None:
    rows = [{"photo": "in/0.png", "path": "in/1.png", "what": "a cat", "kind": "cat"}]
    file = write(photos / "t.csv", rows)
    named = {"image_column": "photo", "caption_column": "what", "label_column": "kind"}
    assert opened(file, **named).items[0][0] == pixels(picture(0))
    assert opened(file, CAPTIONS, **named).targets == [("a cat",)]
    outcome = command("datasets", "check", f"table:{file}", "--label_column", "kin")
    assert (outcome.code, len(outcome.err)) == (2, 1)
    assert "--label_column kin: " in outcome.err[0]
    assert outcome.err[0].endswith("its columns: photo, path, what, kind. Did you mean 'kind'?")


def test_damaged_rows_of_a_parquet_file_and_missing_images_are_bad_images(tmp_path: Path) -> None:
    rows = [{"image": png(0), "label": 0}, {"image": None, "label": 0}, {"image": b"?", "label": 0}]
    dataset = opened(write(tmp_path / "t.parquet", rows))
    with pytest.raises(BadImage, match=r"t.parquet, row 2: holds no bytes"):
        dataset.items[1]
    with pytest.raises(BadImage, match=r"t.parquet, row 3: not an image"):
        dataset.items[2]
    missing = opened(write(tmp_path / "t.csv", [{"image": "nowhere.png", "label": 0}]))
    with pytest.raises(BadImage, match=r"nowhere.png: .*No such file"):
        missing.items[0]


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=re.escape("pip install 'anchorprune[parquet]'")):
        opened(tmp_path / "t.parquet")


def test_a_column_of_data_that_is_no_table_is_refused() -> None:
    with pytest.raises(FieldError, match=r"label_column='x': bundled is no table; leave it out"):
        open_dataset(DataSpec(name="bundled", label_column="x"), pixels)


def test_a_file_of_captions_for_data_that_reads_none_is_refused() -> None:
    with pytest.raises(FieldError, match=r"annotation_file='a.json': bundled has no captions in a file apart"):
        open_dataset(DataSpec(name="bundled", annotation_file="a.json"), pixels)


# --- as part of a request


def test_the_columns_are_part_of_a_requests_json_hash_and_flags() -> None:
    data = DataSpec(name="table:t.csv", label_column="kind")
    request = Request(model=ModelSpec(name="m"), data=data, compute=Compute(device="cpu"))
    assert Request.from_dict(json.loads(json.dumps(request.as_dict()))) == request
    assert " --label_column kind" in " ".join(request.flags())
    other = dataclasses.replace(request, data=DataSpec(name="table:t.csv"))
    assert other.hash() != request.hash()
    assert "_column" not in " ".join(other.flags())


def test_evaluating_a_table_gives_what_its_folder_gives(world: World, tmp_path: Path) -> None:
    folder = Path(world.things[1].removeprefix("folder:"))
    rows = [
        {"image": str(path), "label": path.parent.name.replace("_", " ")} for path in sorted(folder.glob("*/*.png"))
    ]
    table = ["--dataset", f"table:{write(tmp_path / 't.csv', rows)}"]
    ours = evaluated(*world.model, *table, "--output", tmp_path / "a.json")
    theirs = evaluated(*world.model, *world.things, "--output", tmp_path / "b.json")
    assert ours["metrics"] == theirs["metrics"]
    assert ours["n_total"] == 24


def test_a_table_of_captions_is_evaluated_as_retrieval_and_so_is_its_export(world: World, tmp_path: Path) -> None:
    rows = []
    for i, words in enumerate(["red", "green", "blue", "white", "black"]):
        picture(i).save(tmp_path / f"{i}.png")
        rows += [{"image": f"{i}.png", "caption": f"{words} {where}"} for where in ("at sea", "on a hill")]
    table = f"table:{write(tmp_path / 't.csv', rows)}"
    ours = evaluated(*world.model, "--dataset", table, "--recall_k", 1, 2, "--output", tmp_path / "a.json")
    assert ours["task"] == CAPTIONS
    assert command("export-wds", "-d", table, "-o", tmp_path / "out", "--num_workers", 0).code == 0
    wds = ["--dataset", "wds/x", "--dataset_root", tmp_path / "out"]
    theirs = evaluated(*world.model, *wds, "--recall_k", 1, 2, "--output", tmp_path / "b.json")
    assert ours["metrics"] == theirs["metrics"]
    assert len(ours["metrics"]) == 4
