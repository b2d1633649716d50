"""What standard output cannot show is replaced: the work is done, and its result is written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.material import picture

ENCODINGS = {
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "the C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
}


def anchorprune(*words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    env = {key: value for key, value in os.environ.items() if key != "PYTHONIOENCODING"} | environment
    return subprocess.run([sys.executable, "-m", "anchorprune", *words], capture_output=True, env=env, timeout=240)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_cannot_be_shown_is_spelt_otherwise(encoding: str) -> None:
    done = anchorprune("strategies", **ENCODINGS[encoding])
    assert (done.returncode, done.stderr) == (0, b"")
    shown = "0 … 1".encode() if encoding == "UTF-8" else b"0 ... 1"
    assert shown in done.stdout
    assert b"?" not in done.stdout


def test_a_data_set_named_in_another_script_is_evaluated_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "照片" / "猫").mkdir(parents=True)
    picture(0).save(tmp_path / "照片" / "猫" / "0.png")
    words = ["--model", "anchorprune-demo", "--pretrained", "bundled", "--dataset", f"folder:{tmp_path / '照片'}"]
    output = str(tmp_path / "{dataset}.json")
    done = anchorprune("eval", *words, "--num_workers", "0", "--output", output, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"Dump results to: " in done.stdout
    [written] = tmp_path.glob("*.json")
    assert written.name.endswith("照片.json")
    assert json.loads(written.read_text(encoding="utf-8"))["n_samples"] == 1
