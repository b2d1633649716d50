"""docs/encoding.md is true: its Python runs, its files are there, what it says of keys and columns holds."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.material import picture

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "encoding.md").read_text(encoding="utf-8")

pq = pytest.importorskip("pyarrow.parquet")


def test_its_python_runs_and_writes_the_files_that_it_lists(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "my_photos").mkdir()
    for i in range(8):
        picture(i, 160).save(here / "my_photos" / f"{i}.png")
    (example,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(example, {})
    rows, cosine = capsys.readouterr().out.split()
    assert (int(rows), 0 < float(cosine) <= 1) == (8, True)
    listing = re.search(r"```\nembeddings/\n(.*?)```", PAGE, re.DOTALL).group(1)
    names = [line.split()[0] for line in listing.splitlines()]
    assert len(names) == 4
    out = here / "embeddings-66"
    assert all((out / name).is_file() for name in names)
    columns = re.search(r"failures.parquet +([\w, ]+):", listing).group(1).split(", ")
    assert pq.read_table(out / "failures.parquet").schema.names == columns


def test_each_example_has_a_folder_of_its_own_so_that_all_can_be_typed_in_one_place() -> None:
    folders = re.findall(r"--out (\S+)", PAGE) + re.findall(r'anchorprune\.encode\(request, "(.*?)"', PAGE)
    folders = [folder for folder in folders if folder.startswith("embeddings")]
    assert len(folders) == len(set(folders)) == 7


def test_what_it_says_of_encode_json_is_there(here: Path) -> None:
    from anchorprune import Compute, EncodeRequest, ModelSpec, encode

    picture(1, 160).save(here / "1.png")
    compute = Compute(precision="fp32", num_workers=0)
    model = ModelSpec(name="anchorprune-demo", pretrained="bundled")
    encode(EncodeRequest(input="1.png", model=model, compute=compute), "out")
    found = json.loads((here / "out" / "encode.json").read_text())
    said = re.search(r"and seconds: (.*?)\.\n", PAGE, re.DOTALL).group(1)
    assert set(re.findall(r"`(\w+)`", said)) <= found["seconds"].keys()
