"""Whatever a file or a command line holds, it is read, or refused in a sentence, and soon.

`support/fuzzed.py` has the readers and what they are given; `corpus/READER/` holds what was once answered wrongly, or
easily could be. Here a few random ones are tried, the same each time. `make fuzz MINUTES=60` tries others for so long,
and leaves the shortest that fails in the corpus: give it a name that says what it is.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from support.fuzzed import READERS

CORPUS = Path(__file__).parent / "corpus"
MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
FEW = 12  # examples of each reader in the suite
MOST_SECONDS = 60.0  # for one file
_NUMBERS = itertools.count()
_SETTINGS: dict[str, Any] = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
SUITE = settings(**_SETTINGS, derandomize=True, max_examples=FEW, phases=[Phase.generate])
HOUR = settings(**_SETTINGS, max_examples=200, print_blob=False)


@contextmanager
def in_time() -> Iterator[None]:
    """AssertionError for what takes too long."""

    def stop(*_: object) -> None:
        raise AssertionError(f"more than {MOST_SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def answer(reader: str, data: bytes, folder: Path) -> str | None:
    """What a reader says of a file with these bytes that it refuses; None where it reads it."""
    fuzzed = READERS[reader]
    path = folder / f"{next(_NUMBERS)}{fuzzed.suffix}"
    path.write_bytes(data)
    try:
        with warnings.catch_warnings(), in_time():
            warnings.simplefilter("ignore")  # of libraries, on what is odd about a file
            fuzzed.read(path)
    except fuzzed.raises as error:
        return str(error)
    finally:
        path.unlink(missing_ok=True)
    return None


def check(reader: str, data: bytes, folder: Path) -> None:
    said = answer(reader, data, folder)
    if said is not None:
        assert said
        assert len(said.splitlines()) == 1, said
        assert len(said) < 3000, said


@pytest.mark.parametrize("reader", READERS)
def test_whatever_is_in_a_file_is_read_or_refused(reader: str, tmp_path: Path) -> None:
    last: list[bytes] = []

    def one(data: bytes) -> None:
        last[:] = [data]
        check(reader, data, tmp_path)

    run = (HOUR if MINUTES else SUITE)(given(READERS[reader].content)(one))
    end = time.monotonic() + 60 * MINUTES * int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")) / len(READERS)
    try:
        run()
        while time.monotonic() < end:
            run()
    except BaseException as error:
        if MINUTES and last and not isinstance(error, KeyboardInterrupt):  # the last one is the shortest that was found
            (CORPUS / reader).mkdir(exist_ok=True)
            (CORPUS / reader / f"failed-{hashlib.sha256(last[0]).hexdigest()[:8]}").write_bytes(last[0])
        raise


@pytest.mark.parametrize("reader", sorted(folder.name for folder in CORPUS.iterdir()))
def test_what_was_once_answered_wrongly_is_read_or_refused(reader: str, tmp_path: Path) -> None:
    files = sorted((CORPUS / reader).iterdir())
    assert files
    for file in files:
        check(reader, file.read_bytes(), tmp_path)
