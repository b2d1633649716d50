"""Jobs on the workers of a Ray cluster. Each keeps its last model and is sent requests as JSON.

The driver takes what comes back and writes it: a file of a result is the same as without Ray. A job whose worker is
lost (its machine gone, its memory full) is given to another. No torch and no Ray at import.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.request import Compute
from anchorprune.progress import Reporting
from anchorprune.scale.jobs import Engine, Found, Job, Worker, attempt, packed, unpacked

TRIES = 3  # of a job whose worker is lost, and of starting a worker
LOOK = 5.0  # seconds after which it is looked for machines that have come
REACH = 10.0  # seconds for the cluster's head to answer
STORE = 256 << 20  # bytes for objects of a cluster that is started here: results are small


class Unit(Protocol):
    """What a worker does at a time."""

    @property
    def model(self) -> Any: ...
    def to_json(self) -> str: ...
    @classmethod
    def from_json(cls, text: str) -> Unit: ...
    def done_by(self, worker: Worker) -> Any: ...


U = TypeVar("U", bound=Unit)


class Remote:
    """What a worker process runs."""

    def __init__(self) -> None:
        self._worker = Worker()

    def ready(self, folder: str) -> str | None:
        """Go to the folder that file names are relative to; why not, or None."""
        try:
            os.chdir(folder)
        except OSError as error:
            return f"{platform.node()} has no folder {folder} ({error.strerror}), which file names are relative to"
        return None

    def do(self, kind: type[Unit], job: str) -> tuple[bytes, list[Warning | str]]:
        """What became of the job, packed, and what was warned of meanwhile."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", category=UserWarning, module="anchorprune")
            found = attempt(lambda: kind.from_json(job).done_by(self._worker))
        ours = [
            one.message for one in caught if issubclass(one.category, UserWarning) and "anchorprune" in one.filename
        ]
        return packed(found), ours


@dataclass
class _Hand:
    """A worker as the driver sees it: what it does now, and which model it has loaded."""

    actor: Any
    job: Any = None
    model: Any = None


@contextmanager
def connected(gpus: float | None, cpus: float | None, device: str | None, num_workers: int) -> Iterator[Cluster]:
    """The cluster at RAY_ADDRESS, the one that this process is connected to already, or one started for this work.

    Args:
        gpus, cpus: of each worker; None: one GPU where there are any and the device is not the CPU; a processor for
            the worker and for each process that decodes images, as far as a machine has them.

    Raises:
        UserError: Ray is not installed or not to be reached, or no machine has so much.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of each start
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")  # a worker without a GPU sees none
    try:
        import ray
    except ImportError as error:
        raise UserError("--engine ray: Ray is not installed; pip install 'anchorprune[ray]'") from error
    own = not ray.is_initialized()
    if own:
        address = os.environ.get("RAY_ADDRESS")
        _check_reachable(address)
        local: dict[str, Any] = {} if address else {"include_dashboard": False, "object_store_memory": STORE}
        try:
            ray.init(address or "local", log_to_driver=False, logging_level="ERROR", **local)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"--engine ray: no cluster at {address or 'this machine'} ({reason})") from error
    try:
        yield Cluster(gpus, cpus, device, num_workers)
    finally:
        if own:
            ray.shutdown()


def _check_reachable(address: str | None) -> None:
    """UserError where nobody listens there; Ray itself would try for minutes."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return  # none, `auto`, `local`
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH).close()
    except (OSError, OverflowError, ValueError) as error:
        raise UserError(
            f"--engine ray: no cluster at RAY_ADDRESS={address} ({error}); ray start --head starts one"
        ) from error


class Cluster(Engine):
    """The machines of a Ray cluster, as workers of equal resources."""

    def __init__(self, gpus: float | None, cpus: float | None, device: str | None, num_workers: int) -> None:
        machines = self._machines()
        if gpus is None:
            gpus = 0.0 if device == "cpu" or not any(of.get("GPU") for of in machines) else 1.0
        self.gpus = gpus
        fit = [of for of in machines if of.get("GPU", 0) >= gpus]
        if not fit:
            most = max((of.get("GPU", 0) for of in machines), default=0)
            raise FieldError("ray_gpus", gpus, f"no machine of the cluster has so many; the most is {most:g}")
        if cpus is None:
            shares = [of.get("CPU", 0) / max(1.0, of["GPU"] // gpus if gpus else 1.0) for of in fit]
            cpus = float(max(1, min([1 + num_workers, *(int(share) for share in shares if share >= 1)])))
        self.cpus = cpus
        if not self.workers:
            most = max(of.get("CPU", 0) for of in fit)
            raise FieldError("ray_cpus", cpus, f"no machine of the cluster has so many; the most is {most:g}")

    @staticmethod
    def _machines() -> list[dict[str, float]]:
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    @property
    def workers(self) -> int:
        """How many the cluster has room for now."""

        def fit(of: dict[str, float]) -> int:
            rooms = [of.get(kind, 0) // each for kind, each in (("CPU", self.cpus), ("GPU", self.gpus)) if each]
            return int(min(rooms, default=1))

        return sum(map(fit, self._machines()))

    def compute(self, compute: Compute) -> Compute:
        kind = "cuda" if self.gpus else "cpu"
        if compute.device is not None or compute.device_name() == kind:
            return compute
        return dataclasses.replace(compute, device=kind)

    def evaluated(
        self,
        jobs: Sequence[Job],
        *,
        start: Callable[[Job], object],
        keep_going: bool = False,
        progress: bool | Reporting = True,
    ) -> Iterator[tuple[Job, Found]]:
        """Each job as it ends, in the order in which they end. UserError where no worker can be started."""
        return self.done(jobs, start=start)

    def done(self, jobs: Sequence[U], *, start: Callable[[U], object]) -> Iterator[tuple[U, Any]]:
        """The same of jobs of any kind: what `done_by` gives, or what stopped it."""
        import ray
        from ray.exceptions import RayError

        remote = ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_restarts=0)(Remote)
        todo, losses, unstarted = list(jobs), Counter[U](), 0
        hands: dict[Any, _Hand] = {}

        def give(hand: _Hand) -> None:
            if not todo:
                ray.kill(hand.actor)  # frees its GPU
                return
            busy = {other.model for other in hands.values()}
            hand.job = min(todo, key=lambda job: (job.model != hand.model, job.model in busy))
            todo.remove(hand.job)
            hand.model = hand.job.model
            start(hand.job)
            hands[hand.actor.do.remote(type(hand.job), hand.job.to_json())] = hand

        try:
            while todo or hands:
                while todo and len(hands) < min(
                    self.workers, len(todo) + sum(hand.job is not None for hand in hands.values())
                ):
                    actor = remote.remote()
                    hands[actor.ready.remote(os.getcwd())] = _Hand(actor)
                if not hands:  # all machines that had room are gone; others may come
                    time.sleep(LOOK)
                    continue
                done, _ = ray.wait(list(hands), num_returns=1, timeout=LOOK)
                for ref in done:
                    hand = hands.pop(ref)
                    job, hand.job = hand.job, None
                    try:
                        answer: Any = ray.get(ref)
                    except RayError as error:
                        reason = " ".join(str(error).split())[:300]
                        if job is None:
                            unstarted += 1
                            if unstarted == TRIES:
                                raise UserError(f"--engine ray: no worker can be started: {reason}") from error
                            continue
                        losses[job] += 1
                        if losses[job] < TRIES:
                            todo.insert(0, job)
                        else:
                            yield job, UserError(f"lost its worker {TRIES} times: {reason}")
                        continue
                    if job is None:
                        if answer is not None:
                            raise UserError(f"--engine ray: {answer}")
                        unstarted = 0
                        give(hand)
                        continue
                    give(hand)
                    content, warned = answer
                    for message in warned:
                        warnings.warn(message, stacklevel=2)
                    yield job, unpacked(content)
        finally:
            for hand in hands.values():
                ray.kill(hand.actor)
