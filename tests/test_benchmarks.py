"""Benchmarks are programs as others are: what is not there is one line, and exit code 2."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.mark.parametrize(
    "words",
    [
        ["class_means.py", "--split", "train", "--output", "c.pt", "--dataset", "bundled"],
        ["adaptive.py", "--images", "photos"],
    ],
    ids=lambda words: words[0],
)
def test_a_checkpoint_that_is_not_there_is_one_line(here: Path, words: list[str]) -> None:
    script, *flags = words
    model = ["--model", "ViT-B-16", "--pretrained", "CHECKPOINT.pt"]
    done = subprocess.run(
        [sys.executable, BENCHMARKS / script, *flags, *model], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"{script}: error: --pretrained CHECKPOINT.pt: neither a file nor a tag of ViT-B-16")
