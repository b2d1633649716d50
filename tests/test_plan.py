"""`benchmarks/plan.py`: the arithmetic by hand, and the tables of docs/scaling.md are what it prints."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def plan(*words: str) -> subprocess.CompletedProcess[str]:
    script = [sys.executable, str(ROOT / "benchmarks/plan.py"), *words]
    return subprocess.run(script, capture_output=True, text=True, check=False)


def test_hours_days_and_cost_by_hand() -> None:
    """36 million images at 1,000 a second are ten hours; on five devices two; at 3 an hour 30."""
    lines = plan("--images", "36e6", "--price", "3", "--devices", "5", "--rate", "dense=1000", "a=b=4000").stdout
    assert [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines.splitlines()[2:]] == [
        ["dense", "1,000", "encoding", "10.0", "0.08", "30", "100 %"],
        ["a=b", "4,000", "encoding", "2.5", "0.02", "8", "25 %"],
    ]


def test_the_slower_of_decoding_and_encoding_counts() -> None:
    lines = plan("--images", "36e6", "--price", "3", "--rate", "dense=1000", "fast=4000", "--decoding", "2000").stdout
    assert "| fast | 2,000 | decoding | 5.0 |" in lines


def test_what_cannot_be_is_refused() -> None:
    for more in (["--rate", "fast"], ["--rate", "fast=0"], ["--rate", "fast=nan"], ["--rate", "a=1", "--devices", "0"]):
        assert plan("--images", "1e9", "--price", "1", *more).returncode == 2


def test_the_tables_of_the_page_are_what_it_prints() -> None:
    page = (ROOT / "docs/scaling.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(python benchmarks/plan\.py.*?)```(.*?)(?=\n\n[^|\n])", page, re.DOTALL)
    assert len(blocks) == 4
    for command, below in blocks:
        words = shlex.split(command.replace("\\\n", " "))
        assert plan(*words[2:]).stdout.strip() in below
