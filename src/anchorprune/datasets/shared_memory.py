"""Batches that cross from worker processes, where shared memory is small: /dev/shm has 64 MB in Docker by default."""

from __future__ import annotations

import os
from typing import Any

SHARED = "/dev/shm"
MEMORY = "give more shared memory (docker run --shm-size=2g)"
_AHEAD = 2  # batches that torch has each worker be ahead


def room(num_workers: int) -> int | None:
    """Bytes that a batch may take of shared memory, so that all that are under way fit; None where it is unknown."""
    try:
        found = os.statvfs(SHARED)
    except (OSError, AttributeError):  # not there on macOS and Windows
        return None
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")  # processes of one launch share it
    share = found.f_bavail * found.f_frsize // max(1, int(ranks) if ranks.isdecimal() else 1)
    return share // (_AHEAD * max(1, num_workers) + 2)


class Carried:
    """A batch that crosses processes: its tensors by shared memory, as torch does, or with `by_value` as bytes."""

    by_value: bool = False

    def carry(self, room: int | None) -> None:
        """Choose by what `room` says."""
        size = sum(getattr(value, "nbytes", 0) for value in vars(self).values())
        self.by_value = room is not None and size > room

    def __getstate__(self) -> dict[str, Any]:
        return {name: _as_array(value) if self.by_value else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(
            {name: _as_tensor(value) if state.get("by_value") else value for name, value in state.items()}
        )


def _as_array(value: Any) -> Any:
    import torch

    # NumPy knows no bfloat16
    return value.numpy() if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16 else value


def _as_tensor(value: Any) -> Any:
    import numpy as np
    import torch

    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value
