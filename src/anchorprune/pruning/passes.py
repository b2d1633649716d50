"""The records of forward passes: each belongs to its pass, so that threads that share a pruned model do not meet."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anchorprune.pruning.record import Record


class Passes:
    """What forward passes did: each thread sees its own last one. Copies and pickles carry none."""

    def __init__(self) -> None:
        self._local = threading.local()
        self._latest = Record()  # of any thread

    def begin(self) -> Record:
        """The record of a pass that begins now in this thread."""
        if _in_backward():  # gradient checkpointing runs a block again: it belongs to the pass that it is part of
            return self.current
        record = Record()
        self.set(record)
        return record

    @property
    def current(self) -> Record:
        """The record of the pass under way in this thread, or of its last one; an empty one before the first."""
        record: Record | None = getattr(self._local, "record", None)
        if record is not None:
            return record
        # On a GPU `backward()` runs in threads of its own, and with it the blocks that are checkpointed.
        return self._latest if _in_backward() else Record()

    def set(self, record: Record) -> None:
        self._local.record = self._latest = record

    @contextmanager
    def off_the_record(self) -> Iterator[None]:
        """Passes of this thread within leave no trace."""
        earlier, latest = getattr(self._local, "record", None), self._latest
        try:
            yield
        finally:
            self._local.record, self._latest = earlier, latest

    def __getstate__(self) -> dict[str, object]:
        return {}

    def __setstate__(self, state: dict[str, object]) -> None:
        Passes.__init__(self)


def _in_backward() -> bool:
    if torch.compiler.is_compiling():
        return False
    return torch._C._current_graph_task_id() != -1
