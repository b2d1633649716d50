"""docs/tutorial.md runs, from the first block to the last, in a folder of its own."""

from __future__ import annotations

import re
import shlex
import tarfile
from pathlib import Path

import pytest
from support.material import command, read

from anchorprune import bundled

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(python|bash)\n(.*?)```", PAGE, re.DOTALL)
FEW = ["--limit", "8", "--num_workers", "0", "--batch_size", "8"]  # the page's figures are of all 400
MEASURING = ("eval", "sweep", "tune", "calibrate")


@pytest.fixture
def quick(here: Path, few_suffice: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tar of eight of the photographs, a search that tries one budget, and calibration that takes what it gets."""
    with tarfile.open(bundled.PHOTOS / "test" / "0.tar") as photos, tarfile.open(here / "few.tar", "w") as few:
        for member in photos.getmembers()[:16]:
            few.addfile(member, photos.extractfile(member))
    monkeypatch.setattr("anchorprune.studies.tune.SHARES", (0.5,))
    for module in ("alignment", "studies.calibrate"):
        monkeypatch.setattr(f"anchorprune.{module}.LEAST", 5)
    return here


def test_every_block_of_the_tutorial_runs(quick: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    said = {}
    for language, block in BLOCKS:
        if language == "python":
            exec(block.replace('bundled.PHOTOS / "test" / "0.tar"', '"few.tar"').replace("check=50", "check=4"), names)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            program, *words = shlex.split(line)
            assert program == "anchorprune"
            outcome = command(*words, *(FEW if words[0] in MEASURING else []))

            assert outcome.code == 0, (words, outcome.err)
            said[words[0]] = outcome.out
    assert {language for language, _ in BLOCKS} == {"python", "bash"}
    assert said.keys() == {*MEASURING, "compare", "export"}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "197 tokens become 81"
    assert "8 embeddings" in printed[-1]
    assert {path.name for path in quick.iterdir()} >= {"sweep", "tuned", "embeddings", "tower.pt2", "calibrated.json"}
    cost = read("pruned.json")["cost"]
    assert f"{cost['gmacs_dense']:.2f} | {cost['gmacs']:.2f}" in PAGE
