"""The examples run, on the bundled model, and show what they say."""

from __future__ import annotations

import io
import json
import runpy
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from anchorprune import bundled

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NOTEBOOK = EXAMPLES / "what_is_kept.ipynb"


def cells() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_the_notebook_shows_three_photographs_and_what_is_kept_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    for cell in cells():
        exec("".join(cell["source"]), names)
    assert [len(row) for row in names["pictures"]] == [3, 3, 3]
    classes, coarse, described = capsys.readouterr().out.splitlines()
    assert len(set(classes.split(","))) == 3
    assert coarse == "coarse: 197 tokens, 67 at the end"
    assert described == "anchor: 197 tokens, 61 at the end"
    for photo, *kept in names["pictures"]:
        brightness = [sum(each.convert("L").histogram()[:64]) for each in (photo, *kept)]
        assert brightness[0] < min(brightness[1:])  # what was dropped is dark


def test_the_notebook_is_kept_without_outputs() -> None:
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells())


def test_a_folder_is_searched_by_image_and_by_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    with tarfile.open(bundled.PHOTOS / "test" / "0.tar") as tar:
        members = [each for each in tar.getmembers() if each.name.endswith((".jpg", ".webp", ".png"))][::40]
        contents = {each.name: tar.extractfile(each).read() for each in members}  # type: ignore[union-attr]
    (tmp_path / "photos").mkdir()
    for number, content in enumerate(contents.values()):
        Image.open(io.BytesIO(content)).convert("RGB").save(tmp_path / f"photos/{number:02}.png")

    def search(*question: str) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["search_folder.py", "photos", *question])
        runpy.run_path(str(EXAMPLES / "search_folder.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    monkeypatch.chdir(tmp_path)
    found = search("--image", "photos/07.png")
    assert found[0] == "1.000  07.png"
    assert len(found) == 5
    ranked = [float(line.split()[0]) for line in found]
    assert ranked == sorted(ranked, reverse=True)
    assert len(set(search("--text", "a photo of a dog"))) == 5
