"""Processes that read images and are killed: what they had is read again, and only what kills them is a failure."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from support.launched import environment
from support.material import command, make_folder
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from anchorprune.datasets import workers
from anchorprune.datasets.workers import in_batches
from anchorprune.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:a process that reads images was killed")


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead worker is looked for more often than each 5 seconds."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.05,))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Numbers:
    """Reads number i as i, and dies with some: always, or the first time."""

    def __init__(self, deadly: set[int], once: Path | None = None) -> None:
        self.deadly, self.once = deadly, once

    def __getitem__(self, row: int) -> Any:
        if row in self.deadly:
            if self.once is None:
                die()
            elif not self.once.exists():
                self.once.touch()
                die()
        return row

    def collate(self, samples: list[Any]) -> list[Any]:
        return samples

    def lost(self, row: int, reason: str) -> Any:
        return reason


BATCHES = [range(start, start + 4) for start in range(0, 24, 4)]


@pytest.mark.parametrize("count", [1, 2])
def test_the_images_of_a_killed_process_are_read_again(tmp_path: Path, count: int) -> None:
    found = list(in_batches(Numbers({9}, tmp_path / "once"), BATCHES, num_workers=count))
    assert found == [list(batch) for batch in BATCHES]


def test_only_what_kills_whoever_reads_it_is_lost() -> None:
    found = list(in_batches(Numbers({9, 10, 20}), BATCHES, num_workers=2))
    assert found == [[workers.KILLED if i in (9, 10, 20) else i for i in batch] for batch in BATCHES]


def test_where_every_process_is_killed_it_ends_with_what_to_do() -> None:
    with pytest.raises(UserError, match="num_workers=2: the processes that read images are killed whatever they read"):
        list(in_batches(Numbers(set(range(24))), BATCHES, num_workers=2))


def test_a_killed_process_does_not_disturb_what_is_computed_meanwhile(tmp_path: Path) -> None:
    """torch raises in the main thread at once, wherever that is."""
    found = []
    for batch in in_batches(Numbers({9}, tmp_path / "once"), BATCHES, num_workers=1):
        found += batch
        for _ in range(50):
            torch.ones(64, 64) @ torch.ones(64, 64)
    assert found == list(range(24))
    assert signal.getsignal(signal.SIGCHLD) not in (None, signal.SIG_DFL)  # theirs is back


READER = """
import multiprocessing, os, sys, time
from anchorprune.datasets.workers import in_batches

class Large:  # more than a pipe holds
    __getitem__ = lambda self, row: bytes(1 << 20)
    collate = lambda self, samples: samples

batches = in_batches(Large(), [[row] for row in range(40)], num_workers=2)
next(batches)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


def test_no_reader_outlives_the_process_that_it_reads_for() -> None:
    command = [sys.executable, "-c", READER]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        readers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(readers) == 2
        process.kill()
    until = time.monotonic() + 30
    while alive := [pid for pid in readers if is_alive(pid)]:
        assert time.monotonic() < until, alive
        time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_errors_of_our_own_pass() -> None:
    class Broken(Numbers):
        def __getitem__(self, row: int) -> Any:
            raise RuntimeError("a fault")

    with pytest.raises(RuntimeError, match="a fault"):
        list(in_batches(Broken(set()), BATCHES, num_workers=1))


@pytest.fixture
def deadly(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of six images, of which one kills its reader."""
    folder = make_folder(here / "photos", classes=2, per_class=3)
    bad = sorted(folder.rglob("*.png"))[1]
    from anchorprune.datasets import images
    from anchorprune.embeddings import loading

    decode = images.decode

    def deadly(data: bytes, source: str, *rest: Any) -> Any:
        if str(source).endswith(str(bad.relative_to(folder))):
            die()
        return decode(data, source, *rest)

    monkeypatch.setattr(loading, "decode", deadly)
    monkeypatch.setattr("anchorprune.datasets.encoded.decode", deadly)
    return bad


def test_encode_makes_a_failure_of_an_image_that_kills_its_reader(world: Any, here: Path, deadly: Path) -> None:
    outcome = command("encode", "--input", "photos", *world.model, "--out", "out", "--no_amp", "--num_workers", 1)
    assert outcome.code == 0, outcome.err
    failures = pq.read_table("out/failures.parquet").to_pylist()
    assert [row["reason"] for row in failures] == [workers.KILLED]
    assert pq.read_table("out/embeddings").num_rows == 5
    assert sum("Fewer --num_workers take less memory" in line for line in outcome.err) == 1


def test_eval_counts_it_as_a_bad_image_or_names_it(world: Any, here: Path, deadly: Path) -> None:
    flags = ["eval", *world.model, "--dataset", "folder:photos", "--no_amp", "--num_workers", 1, "--output", "r.json"]
    outcome = command(*flags)
    assert outcome.code == 2
    assert f"cannot read image {deadly.relative_to(here / 'photos')}" in outcome.err[-1]
    assert workers.KILLED in outcome.err[-1]
    outcome = command(*flags, "--skip_bad_images")
    assert outcome.code == 0, outcome.err
