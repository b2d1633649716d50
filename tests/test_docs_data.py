"""docs/data.md is true: its files are written, its Python runs, its commands that need no model and no network too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from support.material import command, picture

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
FILES = re.findall(r"```\w+ (\S+)\n(.*?)```", PAGE, re.DOTALL)
LINES = [
    line
    for block in re.findall(r"```bash\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
]
RUN = [words[1:] for line in LINES if (words := shlex.split(line, comments=True))[1] in ("datasets", "export-wds")]


@pytest.fixture
def written(here: Path) -> Path:
    """The page's files, and the images that they name."""
    for label in ("cat", "dog"):
        (here / "my_photos" / label).mkdir(parents=True)
        picture(len(label) + ord(label[0])).save(here / "my_photos" / label / "0.png")
    for name, content in FILES:
        (here / name).write_text(content, encoding="utf-8")
    return here


def test_the_page_has_a_table_of_each_text_format_and_commands_for_them() -> None:
    assert [Path(name).suffix for name, _ in FILES] == [".csv", ".jsonl"]
    assert len(RUN) >= 6


def test_its_commands_do_what_it_says(written: Path) -> None:
    said = {}
    for words in RUN:
        outcome = command(*words, *(["--num_workers", 0] if words != ["datasets"] else []))
        assert (outcome.code, outcome.err) == (0, []), words
        said[" ".join(words)] = outcome.out
    assert said["datasets check folder:my_photos table:photos.csv"][0] == (
        "folder:my_photos (test): 2 samples, all can be read"
    )
    assert said["datasets check table:captions.jsonl"][1] == "  captions: 1 to 2 a sample"
    assert (written / "wds_captions" / "dataset_type.txt").read_text() == "retrieval\n"


def test_its_python_runs(written: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL).group(1)
    exec(example, {})
    assert capsys.readouterr().out == "2 cat (32, 32)\n"


def test_every_source_is_on_the_page() -> None:
    from anchorprune.datasets import sources

    named = {
        "streams": "vtab/NAME",
        "zoo": "cifar10",
        "folder": "folder:PATH",
        "table": "table:FILE",
        "wds": "wds/NAME",
    }
    for name in sources():
        assert f"`{named.get(name, name)}`" in PAGE
