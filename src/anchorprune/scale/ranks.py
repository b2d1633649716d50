"""One evaluation on many processes: those of torchrun, of SLURM or of MPI, each with its share of the samples.

What each has measured goes to the first by gloo; it merges and writes. No torch at import.
"""

from __future__ import annotations

import datetime
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from anchorprune.errors import UserError
from anchorprune.progress import Reporting
from anchorprune.reading import whole_number
from anchorprune.scale.jobs import (
    Engine,
    Found,
    Job,
    T,
    Worker,
    attempt,
    packed,
    said,
    unpacked,
    without_artifacts,
)

if TYPE_CHECKING:
    from anchorprune.evaluation.result import Result

# Rank, world size and rank on its own machine, by launcher. mpirun inside a SLURM job sees SLURM's of the whole job
# step too, so that SLURM comes last.
LAUNCHERS = (
    ("RANK", "WORLD_SIZE", "LOCAL_RANK"),  # torchrun
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK"),  # Open MPI
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID"),  # MPICH and Intel MPI
    ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"),
)
JOINING = datetime.timedelta(minutes=10)  # for all ranks to come
WAITING = datetime.timedelta(days=30)  # for the slowest; one that has stopped is noticed at once


def launcher() -> tuple[str, str] | None:
    """The variables in which the launcher says this process's rank and the world's size; None where there is none."""
    named = ((name, size) for name, size, _ in LAUNCHERS if name in os.environ and size in os.environ)
    return next(named, None)


def launched() -> tuple[int, int]:
    """This process's rank and the world's size; (0, 1) where no launcher started it."""
    if (said := launcher()) is None:
        return 0, 1
    name, size = said
    rank, world = _number(name), _number(size)
    if not 0 <= rank < world:
        raise UserError(
            f"{name}={os.environ[name]} and {size}={os.environ[size]} in the environment: ranks are 0 to the "
            "world's size less one; a launcher sets them"
        )
    return rank, world


def local_rank() -> int:
    """This process's rank on its own machine: which of its accelerators it takes."""
    name = next((local for _, _, local in LAUNCHERS if local in os.environ), None)
    if name is not None and _number(name) < 0:
        raise UserError(f"{name}={os.environ[name]} in the environment is below 0; a launcher sets it")
    return 0 if name is None else _number(name)


def _number(name: str) -> int:
    try:
        return whole_number(os.environ[name])
    except ValueError as error:
        raise UserError(f"{name}={os.environ[name]} in the environment is no number; a launcher sets it") from error


def take_device(device: str | None) -> None:
    """Make `cuda` mean this rank's own GPU; a launcher may show each rank its own alone."""
    import torch

    if device in (None, "cuda") and torch.cuda.is_available():
        torch.cuda.set_device(local_rank() % torch.cuda.device_count())


class Stopped(KeyboardInterrupt):
    """SIGTERM, which a launcher sends to the other ranks when one has stopped."""


class Group(Engine):
    """The ranks of one launch."""

    def __init__(self, rank: int, world: int, group: Any) -> None:
        self.rank, self.world, self._group = rank, world, group
        self.first = rank == 0

    def planned(self, work: Callable[[], T]) -> T:
        """The first rank's. Where that is an error it raises it, and the others end without a word (exit code 2)."""
        import torch.distributed as dist

        box: list[Any] = [None]
        error: UserError | None = None
        if self.first:
            try:
                box = [(work(),)]
            except UserError as raised:
                error = raised
        self._talk(partial(dist.broadcast_object_list, box, src=0, group=self._group))
        if error is not None:
            raise error
        if box[0] is None:
            raise SystemExit(2)
        plan: T = box[0][0]
        return plan

    def evaluated(
        self,
        jobs: Sequence[Job],
        *,
        start: Callable[[Job], object],
        keep_going: bool = False,
        progress: bool | Reporting = True,
    ) -> Iterator[tuple[Job, Found]]:
        """Of the first rank each job; of the others none: they do their share meanwhile.

        Without `keep_going` a rank that fails raises at once, instead of when the others are done.
        """
        import torch.distributed as dist

        worker = Worker(shard=(self.rank, self.world), progress=progress if self.first else False)
        for job in jobs:
            start(job)
            own = attempt(partial(worker.do, job))
            if isinstance(own, UserError):
                own = UserError(f"rank {self.rank} of {self.world}: {said(own)}")
            if isinstance(own, Exception) and not keep_going:
                raise own
            # The first rank's own part stays as it is: its meter has the model, with which some tasks finish.
            sent = b"" if self.first else packed(own if isinstance(own, Exception) else without_artifacts(own))
            parts: list[Any] | None = [None] * self.world if self.first else None
            self._talk(partial(dist.gather_object, sent, parts, dst=0, group=self._group))
            if parts is not None:
                yield job, _whole([own, *map(unpacked, parts[1:])])
            self._talk(partial(dist.barrier, group=self._group))  # the first has written it, or all stop

    def _talk(self, exchange: Callable[[], object]) -> None:
        try:
            exchange()
        except RuntimeError as error:  # gloo: the connection is closed
            raise UserError(
                f"rank {self.rank} of {self.world}: another rank has stopped, and with it this evaluation; what was "
                "written before stands (--skip_existing goes on from there)"
            ) from error


def _whole(parts: list[Found]) -> Found:
    """The results of all ranks' shares, or what stopped the first that was stopped."""
    from anchorprune.evaluation.merging import merge

    done: list[list[Result]] = []
    for part in parts:
        if isinstance(part, Exception):
            return part
        done.append(part)
    return attempt(lambda: [merge(of_request) for of_request in zip(*done, strict=True)])


@contextmanager
def joined(device: str | None = None) -> Iterator[Engine]:
    """All ranks of this launch; where there is but one process, just that.

    Raises:
        UserError: the others are not to be found.
        Stopped: SIGTERM came.
    """
    rank, world = launched()
    if world == 1:
        yield Engine()
        return
    if missing := [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UserError(
            f"--shard_samples: {' and '.join(missing)} not set in the environment: the machine of rank 0, and a free "
            "port of it; torchrun sets them, for SLURM and MPI docs/scaling.md says how"
        )
    import torch.distributed as dist

    take_device(device)
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=JOINING)
        group = dist.new_group(backend="gloo", timeout=WAITING)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"--shard_samples: rank {rank} of {world} found no others at {where} ({reason})") from error
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        yield Group(rank, world, group)
    finally:
        signal.signal(signal.SIGTERM, before)
        dist.destroy_process_group()


def _stop(*_: object) -> None:
    rank, world = launched()
    raise Stopped(f"rank {rank} of {world} was told to stop (SIGTERM): another rank has stopped, or the job was ended")
