"""How an image of a listing is read and decoded, and what becomes of those of a batch."""

from __future__ import annotations

import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from anchorprune.datasets.images import decode, transformed
from anchorprune.datasets.sampling import BadImage
from anchorprune.datasets.shared_memory import Carried
from anchorprune.embeddings.listing import Listing

SECONDS = 120.0  # that one image may take; a photograph takes less than one

LONGEST = 1800.0  # seconds without a batch of any worker


@dataclass
class Loaded(Carried):
    """A batch of images, those that cannot be read taken out.

    Attributes:
        rows: of the input, one for each image.
        images: `[B, 3, H, W]`; None for no image.
        columns: what is carried along, one value for each image.
        failures: (row, id, reason).
        reading, decoding: seconds of the worker.
    """

    rows: list[int]
    images: Tensor | None
    columns: dict[str, list[Any]]
    failures: list[tuple[int, str, str]]
    reading: float
    decoding: float

    def pin_memory(self) -> Loaded:
        """What the DataLoader calls where it is to pin."""
        if self.images is not None:
            self.images = self.images.pin_memory()
        return self

    def __len__(self) -> int:
        """Images, readable or not."""
        return len(self.rows) + len(self.failures)


@dataclass
class Reader:
    """What a worker does with a row.

    Attributes:
        columns: what is read beside each image.
        needed: the column without which a row is a failure: the texts that are encoded.
        least: width and height in pixels that a JPEG may be decoded at instead of its own; None: its own.
    """

    listing: Listing
    transform: Callable[[Any], Tensor]
    columns: Sequence[str] = ()
    needed: str | None = None
    least: tuple[int, int] | None = None

    def __getitem__(self, row: int) -> Loaded:
        one = Loaded([], None, {}, [], 0.0, 0.0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on what is odd about a file
            try:
                with _in_time():
                    image, values = self._row(row, one)
            except BadImage as error:
                return self._failed(one, row, str(error))
        one.rows, one.images = [row], image[None]
        one.columns = {name: [value] for name, value in values.items()}
        return one

    def collate(self, samples: list[Loaded]) -> Loaded:
        """Those of a batch as one."""
        images = [one.images for one in samples if one.images is not None]
        good = [one for one in samples if one.rows]
        return Loaded(
            rows=[row for one in good for row in one.rows],
            images=torch.cat(images) if images else None,
            columns={name: [value for one in good for value in one.columns[name]] for name in self.columns},
            failures=[failure for one in samples for failure in one.failures],
            reading=sum(one.reading for one in samples),
            decoding=sum(one.decoding for one in samples),
        )

    def lost(self, row: int, reason: str) -> Loaded:
        return self._failed(Loaded([], None, {}, [], 0.0, 0.0), row, reason)

    def _failed(self, one: Loaded, row: int, reason: str) -> Loaded:
        one.failures = [(row, shown(self.listing.ids[row]), shown(reason))]
        return one

    def _row(self, row: int, batch: Loaded) -> tuple[Tensor, dict[str, Any]]:
        start = time.perf_counter()
        try:
            data = self.listing.read(row)
            values = self.listing.columns(row, self.columns) if self.columns else {}
        finally:
            batch.reading += time.perf_counter() - start
        if self.needed and not (isinstance(text := values[self.needed], str) and text.strip()):
            raise BadImage(f"{self.listing.ids[row]}: has no text {self.needed!r}")
        start = time.perf_counter()
        try:
            image = decode(data, self.listing.ids[row], self.least)
            return transformed(self.transform, image, self.listing.ids[row]), values
        finally:
            batch.decoding += time.perf_counter() - start


@contextmanager
def _in_time() -> Iterator[None]:
    """BadImage for what takes too long: some images are made to. Where an alarm can be set that is nobody else's."""
    if not _may_set_alarm():
        yield
        return

    def stop(*_: object) -> None:
        raise BadImage(f"takes more than {SECONDS:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _may_set_alarm() -> bool:
    """In a worker; without workers in the main thread, unless the program has an alarm of its own."""
    if not hasattr(signal, "setitimer"):  # Windows
        return False
    if get_worker_info() is not None:
        return True
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and not signal.getitimer(signal.ITIMER_REAL)[0]


def shown(text: str) -> str:
    """Text of a file name, which need not be UTF-8, as UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
