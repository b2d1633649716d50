"""What stays the same while the code moves: help texts, hashes, a result's bytes, the demo's figures.

`python tests/test_goldens.py` writes the files anew; look at the difference before you commit it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "goldens"
BUNDLED = ["--model", "anchorprune-demo", "--pretrained", "bundled", "--dataset", "bundled", "--limit", "24"]
RUNS = {
    "unpruned": ["--no_amp"],
    "described": ["--no_amp", "--enable_pruning"],
    "coarse": ["--no_amp", "--enable_pruning", "--strategy", "coarse", "--keep_patches", "66"],
    "first_image": ["--no_amp", "--enable_pruning", "--selection", "first_image", "--split", "test"],
    "autocast": [],
}
COMMANDS = (
    *("", "eval", "build", "compare", "rerun", "sweep", "tune", "encode", "speed", "export"),
    *("datasets", "export-wds", "strategies", "demo"),
)
PHOTOS = 24  # of the demo; all of them take a minute


def anchorprune(*words: str, folder: Path) -> str:
    """What the command prints, run in `folder` as a user would."""
    command = [sys.executable, "-m", "anchorprune", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


def help_text(command: str, folder: Path) -> str:
    """One word after the other: how lines break differs between versions of Python."""
    return " ".join(anchorprune(*command.split(), "--help", folder=folder).split()) + "\n"


def result_text(name: str, folder: Path) -> str:
    """The result file as it is, but for what another machine or hour makes of it."""
    anchorprune("eval", *BUNDLED, *RUNS[name], "--num_workers", "0", "--quiet", "--output", "r.json", folder=folder)
    text = (folder / "r.json").read_text(encoding="utf-8")
    measured = json.loads(text)
    for key in ("images_per_second", "peak_memory_mb", "seconds"):
        measured["cost"][key] = None
    measured["environment"] = dict.fromkeys(measured["environment"])
    assert json.loads(text).keys() == measured.keys()
    return json.dumps(measured, indent=2) + "\n"


def demo_figures(folder: Path) -> dict[str, Any]:
    """What the demo finds of each way, without its times."""
    anchorprune("demo", "--out", "out", "--limit", str(PHOTOS), "--quiet", folder=folder)
    found = {}
    for path in sorted((folder / "out").glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found[path.stem] = {
            "config_hash": result["config_hash"],
            "metrics": result["metrics"],
            "gmacs": result["cost"]["gmacs"],
        }
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_it_said(command: str, tmp_path: Path) -> None:
    assert help_text(command, tmp_path) == (FOLDER / f"help_{command or 'anchorprune'}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", RUNS)
def test_a_result_is_what_it_was(name: str, tmp_path: Path) -> None:
    assert result_text(name, tmp_path) == (FOLDER / f"result_{name}.json").read_text(encoding="utf-8")


def test_the_demo_finds_what_it_found(tmp_path: Path) -> None:
    assert demo_figures(tmp_path) == json.loads((FOLDER / "demo.json").read_text(encoding="utf-8"))


def write() -> None:
    """Write all goldens anew."""
    import tempfile

    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for command in COMMANDS:
            text = help_text(command, folder)
            (FOLDER / f"help_{command or 'anchorprune'}.txt").write_text(text, encoding="utf-8")
        for run in RUNS:
            (FOLDER / f"result_{run}.json").write_text(result_text(run, folder), encoding="utf-8")
        figures = json.dumps(demo_figures(folder), indent=1) + "\n"
        (FOLDER / "demo.json").write_text(figures, encoding="utf-8")


if __name__ == "__main__":
    write()
