"""Images read and decoded in worker processes, a bounded number of batches ahead."""

from __future__ import annotations

import signal
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from anchorprune.datasets.images import decode, one_line
from anchorprune.datasets.sampling import BadImage
from anchorprune.embeddings.listing import Listing

SECONDS = 120.0  # that one image may take in a worker; a photograph takes less than one


@dataclass
class Loaded:
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
    """What a worker does with the rows of a batch.

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

    def __getitems__(self, rows: list[int]) -> Loaded:
        batch = Loaded([], None, {name: [] for name in self.columns}, [], 0.0, 0.0)
        images = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Pillow, on what is odd about a file
            for row in rows:
                try:
                    with _in_time():
                        image, values = self._row(row, batch)
                except BadImage as error:
                    batch.failures.append((row, shown(self.listing.ids[row]), shown(str(error))))
                    continue
                batch.rows.append(row)
                images.append(image)
                for name, value in values.items():
                    batch.columns[name].append(value)
        if images:
            batch.images = torch.stack(images)
        return batch

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
            return self.transform(decode(data, self.listing.ids[row], self.least)), values
        except BadImage:
            raise
        except Exception as error:  # of the transform, for an image of 1 × 60,000 pixels, say
            raise BadImage(f"{self.listing.ids[row]}: {one_line(error)}") from error
        finally:
            batch.decoding += time.perf_counter() - start


@contextmanager
def _in_time() -> Iterator[None]:
    """BadImage for what takes too long: some images are made to. In workers only, where nobody else sets an alarm."""
    if get_worker_info() is None or not hasattr(signal, "setitimer"):
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


def loaded(
    reader: Reader, batches: Iterable[Sequence[int]], *, num_workers: int, pin_memory: bool = False
) -> Iterator[Loaded]:
    """The rows of each of `batches`, in order; each worker is two batches ahead at most."""
    yield from DataLoader(
        reader,  # type: ignore[arg-type]  # map-style by its methods
        batch_sampler=_Sampler(batches),
        num_workers=num_workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        # its own generator: reading must not advance the global one that a strategy may draw from
        generator=torch.Generator(),
    )


class _Sampler:
    def __init__(self, batches: Iterable[Sequence[int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield list(batch)


def _as_it_is(batch: Any) -> Any:
    return batch


def shown(text: str) -> str:
    """Text of a file name, which need not be UTF-8, as UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
