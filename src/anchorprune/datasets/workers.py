"""Samples read in worker processes, any of which may be killed: for want of memory, or by what a file does to it."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from anchorprune.datasets.images import one_line
from anchorprune.datasets.shared_memory import MEMORY, SHARED, Carried, room
from anchorprune.errors import FieldError, FieldWarning

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

# What torch says of a worker that is gone, and of its own thread that could not fetch what such a one had sent.
_GONE = re.compile(r"DataLoader worker \(pid|Pin memory thread exited unexpectedly")
_MOST = 8  # images in a row with which the process dies that reads them alone: it is not the images then
PATIENCE = 600.0  # seconds that a batch may take
_LOOKS = 2.0  # seconds between a worker's looks for the process that it reads for
KILLED = "the process that read it was killed, or ran out of memory"

_SAID = (
    "a process that reads images was killed (out of memory?); its images are read again, one at a time. "
    "Fewer {} take less memory"
)
_WHATEVER = "the processes that read images are killed whatever they read; free some memory, or try 0"

_PIPES = (
    f"shared memory ({SHARED}) is small for {{}} worker processes: images come through pipes, more slowly; {MEMORY} or "
    "fewer workers"
)

_Start = Callable[["DataLoader[Any]"], Iterator[Any]]


class Readable(Protocol):
    """What workers read from."""

    def __getitem__(self, row: int, /) -> Any:
        """A sample, whether it can be read or not."""

    def collate(self, samples: list[Any]) -> Any:
        """A batch of samples."""

    def lost(self, row: int, reason: str) -> Any:
        """The sample in place of one that no process survives."""


def in_batches(
    source: Readable,
    batches: Iterable[Sequence[int]],
    *,
    num_workers: int,
    pin_memory: bool = False,
    patience: float = PATIENCE,
) -> Iterator[Any]:
    """What `source` makes of each of `batches`, in order; each worker is two batches ahead at most.

    Where a worker dies, the batches that were on their way are read again, one sample at a time, by a worker for them
    alone; a sample with which that one dies too is `lost`. Batches that are `Carried` come through pipes where shared
    memory is too small for them.

    Args:
        patience: seconds to wait for a batch of the workers.

    Raises:
        UserError: whatever is read, the process dies; workers cannot be started, find no shared memory, or give nothing
            for so long.
    """
    todo = iter(batches)
    out: deque[list[int]] = deque()  # in the workers' hands

    def dealt() -> Iterator[list[int]]:
        for batch in todo:
            out.append(list(batch))
            yield out[-1]

    dead: list[int] = []  # the last samples, with which one process after the other died
    warned = False
    said = False
    collate = partial(_collated, source, room(num_workers) if num_workers else None)
    options = {"pin_memory": pin_memory, "collate_fn": collate}
    with _without_alarm(patience) as started:
        while True:
            try:
                for batch in started(_loader(source, dealt(), num_workers, **options)):
                    out.popleft()
                    if getattr(batch, "by_value", False) and not said:
                        said = True
                        warnings.warn(_PIPES.format(num_workers), stacklevel=2)
                    yield batch
                return
            except RuntimeError as error:
                if (refused := _refused(str(error), num_workers, patience)) is not None:
                    raise refused from error
                if not _GONE.match(str(error)):
                    raise
            if not warned:
                warned = True
                warnings.warn(FieldWarning(_SAID.format("num_workers"), _SAID.format("--num_workers")), stacklevel=2)
            while out:
                batch = source.collate(list(_one_by_one(source, out[0], started, dead)))
                if len(dead) >= _MOST:
                    raise FieldError("num_workers", num_workers, _WHATEVER)
                out.popleft()
                yield batch.pin_memory() if pin_memory else batch


def _collated(source: Readable, room: int | None, samples: list[Any]) -> Any:
    batch = source.collate(samples)
    if isinstance(batch, Carried):
        batch.carry(room)
    return batch


def _refused(said: str, num_workers: int, patience: float) -> FieldError | None:
    """What torch, which tells them apart by their texts alone, says of its workers; None for anything else."""
    if "timed out after" in said:
        what = f"none has given a batch in {patience:g} s"
    elif "Bus error" in said or "shared memory" in said:
        what = f"one has found no shared memory ({SHARED})"
    elif said.startswith("cannot be started"):
        what = f"they {said}"
    else:
        return None
    fix = f"of the worker processes {what}: {MEMORY}, or decode images in the main process: 0"
    return FieldError("num_workers", num_workers, fix)


def _one_by_one(source: Readable, rows: Sequence[int], started: _Start, dead: list[int]) -> Iterator[Any]:
    """The samples of a batch. The worker has one at a time, so that it is known with which it dies.

    Args:
        dead: the last samples with which it did; there is no end of them where it is not their fault.
    """
    left = deque(rows)
    while left and len(dead) < _MOST:
        try:
            loader = _loader(source, ([row] for row in list(left)), 1, prefetch_factor=1, collate_fn=_only)
            for sample in started(loader):
                left.popleft()
                dead.clear()
                yield sample
        except RuntimeError as error:
            if not _GONE.match(str(error)):
                raise
            dead.append(left[0])
            yield source.lost(left.popleft(), KILLED)


def _loader(source: Readable, batches: Iterator[list[int]], num_workers: int, **options: Any) -> DataLoader[Any]:
    import torch
    from torch.utils.data import DataLoader

    return DataLoader(
        source,  # type: ignore[arg-type]  # map-style by its methods
        batch_sampler=_Sampler(batches),
        num_workers=num_workers,
        # its own generator: reading data must not advance the global one that a strategy may draw from
        generator=torch.Generator(),
        worker_init_fn=_not_without_parent,
        **options,
    )


def _not_without_parent(worker: int) -> None:
    """Of a worker process: it ends when the process has that it reads for.

    torch looks for that too, but a worker that has more to hand over than a pipe holds then waits for ever for somebody
    to take it: it has the pipe's other end itself.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        while os.getppid() == parent.pid:
            time.sleep(_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Sampler:
    def __init__(self, batches: Iterator[list[int]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return self._batches


def _only(samples: list[Any]) -> Any:
    (sample,) = samples
    return sample


def _waits_no_longer(batches: Any, patience: float) -> None:
    """Has torch, which looks every 5 seconds whether a worker is gone, look how long it has waited, too.

    The `timeout` of a DataLoader would keep it from looking for the dead.
    """
    look, since = batches._try_get_data, 0.0

    def looked(*args: Any) -> Any:
        nonlocal since
        since = since or time.monotonic()
        found: tuple[bool, Any] = look(*args)
        if found[0]:
            since = 0.0
        elif time.monotonic() - since > patience:
            raise RuntimeError("timed out after")
        return found

    batches._try_get_data = looked


@contextmanager
def _without_alarm(patience: float) -> Iterator[_Start]:
    """torch has a dead worker raise wherever the main thread is just then, in the middle of a forward pass, say.

    Of loaders that are started by what this gives it is noticed where its batch is waited for, after 5 seconds; and
    none is waited for longer than `patience`.
    """
    before: Any = None

    def started(loader: DataLoader[Any]) -> Iterator[Any]:
        nonlocal before
        try:
            batches = iter(loader)  # sets torch's handler, where it is the first of the process
        except OSError as error:  # locks are files in shared memory
            raise RuntimeError(f"cannot be started ({one_line(error)})") from error
        if loader.num_workers:
            _waits_no_longer(batches, patience)
        if loader.num_workers and _may_set_handlers():
            was = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            before = was if before is None else before
        return batches

    try:
        yield started
    finally:
        if before is not None and _may_set_handlers():
            signal.signal(signal.SIGCHLD, before)


def _may_set_handlers() -> bool:
    return hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
