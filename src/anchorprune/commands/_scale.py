"""Where a command's evaluations are done, and what happens where one of several fails."""

from __future__ import annotations

import argparse
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from anchorprune.commands._flags import reporting
from anchorprune.errors import FieldError, UserError
from anchorprune.scale import ranks
from anchorprune.scale.jobs import Engine, Fault, Job, said
from anchorprune.terminal import printable

if TYPE_CHECKING:
    from anchorprune.evaluation.result import Result


def add_engine_flags(parser: argparse._ActionsContainer, keep_going: bool = True) -> None:
    """Where it is done, and whether a failure stops it."""
    add = parser.add_argument
    add(
        "--engine",
        default="local",
        choices=["local", "ray"],
        help="local: this process, or this rank of several; ray: the Ray cluster at RAY_ADDRESS, or one started here",
    )
    add(
        "--ray_gpus",
        default=None,
        type=float,
        metavar="N",
        help="GPUs of a Ray worker (default: 1 where there are any)",
    )
    add(
        "--ray_cpus",
        default=None,
        type=float,
        metavar="N",
        help="processors of a Ray worker (default: 1 and one for each of --num_workers, as far as a machine has them)",
    )
    if keep_going:
        add(
            "--keep_going",
            action="store_true",
            help="where one evaluation fails, go on with the others; the failures are listed at the end, exit code 2",
        )


@contextmanager
def engine_of(args: argparse.Namespace) -> Iterator[Engine]:
    """The engine that the command line asks for."""
    shares, deals = (getattr(args, name, False) for name in ("shard_samples", "distributed"))
    if shares and deals:
        raise UserError("--shard_samples deals samples out, --distributed whole evaluations; give one of them")
    for name in ("ray_gpus", "ray_cpus"):
        value = getattr(args, name)
        if value is not None and args.engine != "ray":
            raise FieldError(name, value, "is of --engine ray alone")
        if value is not None and not 0 <= value < float("inf"):
            raise FieldError(name, value, "must be 0 or more")
        if value is not None and value > 1 and value % 1:
            raise FieldError(name, value, "must be a whole number above 1; Ray shares out parts of one only")
    flag = "--shard_samples" if shares else "--distributed"
    if args.engine == "ray":
        if shares or deals:
            raise UserError(f"--engine ray: shares the work out by itself; leave {flag} out")
        from anchorprune.scale import ray

        with ray.connected(args.ray_gpus, args.ray_cpus, args.device, args.num_workers) as cluster:
            yield cluster
        return
    if (shares or deals) and ranks.launcher() is None:
        said = "no launcher (torchrun, SLURM, MPI) started this process, which does all by itself"
        warnings.warn(f"{flag}: {said}", stacklevel=2)
    if shares:
        with ranks.joined(args.device) as group:
            args.verbose = args.verbose and group.first
            yield group
    else:
        if deals:
            ranks.take_device(args.device)
        yield Engine()


class Failures:
    """What failed of several evaluations, where the others go on all the same."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, title: str, error: Exception) -> None:
        """Said at once, a fault of ours with its traceback."""
        if isinstance(error, Fault):
            print(printable(str(error)), file=sys.stderr)
        elif not isinstance(error, UserError):
            print(printable("".join(traceback.format_exception(error))), end="", file=sys.stderr)
        self.lines.append(printable(f"{title}: {' '.join(said(error).split())}"))
        print(f"anchorprune: failed, going on: {self.lines[-1]}", file=sys.stderr, flush=True)

    def listed(self, total: int) -> int:
        """List them; returns the exit code."""
        if not self.lines:
            return 0
        print(f"anchorprune: error: {len(self.lines)} of {total} failed:", file=sys.stderr)
        for line in self.lines:
            print(f"  {line}", file=sys.stderr)
        return 2


def results_of(
    args: argparse.Namespace,
    engine: Engine,
    jobs: Sequence[Job],
    start: Callable[[Job], object],
    failures: Failures,
) -> Iterator[tuple[Job, list[Result]]]:
    """Each job that is done, as it is, with its results; one that fails stops all, unless `--keep_going` is given."""
    done = engine.evaluated(jobs, start=start, keep_going=args.keep_going, progress=reporting(args))
    for job, found in done:
        if not isinstance(found, Exception):
            yield job, found
        elif args.keep_going:
            failures.add(job.title, found)
        else:
            raise found
