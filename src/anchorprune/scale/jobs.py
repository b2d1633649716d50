"""Evaluations as jobs, and the engine that does them in this process. No torch at import."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anchorprune.datasets.base import EvalDataset
from anchorprune.errors import FieldError, UserError, of_the_machine
from anchorprune.evaluation.request import Compute, Request
from anchorprune.models.base import LoadedModel, ModelSpec
from anchorprune.progress import Reporting
from anchorprune.tasks.base import Bench

if TYPE_CHECKING:
    from anchorprune.evaluation.result import Result

T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What one worker does at a time: requests that differ in pruning alone and share a pass.

    Attributes:
        keep_scores, attention_images: as in `evaluate`.
    """

    requests: tuple[Request, ...]
    keep_scores: bool = False
    attention_images: int = 0

    @property
    def title(self) -> str:
        """`task of model pretrained on data (language)`."""
        model, data = self.requests[0].model, self.requests[0].data
        named = f"{model.name} {model.pretrained}".strip()
        return f"{self.requests[0].task.name} of {named} on {data.name} ({data.language})"

    @property
    def model(self) -> ModelSpec:
        return self.requests[0].model

    def done_by(self, worker: Worker) -> list[Result]:
        return worker.do(self)

    def to_json(self) -> str:
        return json.dumps({**vars(self), "requests": [request.as_dict() for request in self.requests]})

    @classmethod
    def from_json(cls, text: str) -> Job:
        content = json.loads(text)
        return cls(**{**content, "requests": tuple(map(Request.from_dict, content["requests"]))})


Found = list["Result"] | Exception  # what became of a job: a result for each request, or what stopped it


class Fault(Exception):
    """Not bad input but a fault in another process: its traceback, as text."""


class Worker:
    """Does one job after the other, and keeps the last model."""

    def __init__(self, *, shard: tuple[int, int] = (0, 1), progress: bool | Reporting = False) -> None:
        self._shard, self._progress = shard, progress
        self._loaded: LoadedModel | None = None

    def do(self, job: Job) -> list[Result]:
        """The results of the job's requests. UserError as in `evaluate`."""
        from anchorprune.evaluation.engine import evaluate

        base = job.requests[0]
        if base.compute.skip_load:
            self._loaded = model = None
        else:
            model = self.loaded(base.model, base.compute, base.data.seed)
        return evaluate(
            job.requests,
            shard=self._shard,
            model=model,
            keep_scores=job.keep_scores,
            attention_images=job.attention_images,
            progress=self._progress,
        )

    def loaded(self, spec: ModelSpec, compute: Compute, seed: int) -> LoadedModel:
        """The model; the last one is kept."""
        from anchorprune.evaluation.runtime import Runtime
        from anchorprune.models import load

        if self._loaded is None or self._loaded.spec != spec:
            self._loaded = None  # frees the last model before the next one is loaded
            runtime = Runtime.of(compute)
            self._loaded = load(spec, runtime.device, runtime.weights, seed)
        return self._loaded


class Engine:
    """Where jobs are done: here, in this process.

    Attributes:
        first: whether this process is the one that speaks and writes.
    """

    first = True

    def planned(self, work: Callable[[], T]) -> T:
        """What `work` gives, the same in all processes: what is to be done."""
        return work()

    def compute(self, compute: Compute) -> Compute:
        """How it is computed where it is done, if that is another kind of device than this machine's."""
        return compute

    def evaluated(
        self,
        jobs: Sequence[Job],
        *,
        start: Callable[[Job], object],
        keep_going: bool = False,
        progress: bool | Reporting = True,
    ) -> Iterator[tuple[Job, Found]]:
        """Each job as it ends, with what became of it.

        Args:
            start: is told of each job that is begun.
            keep_going: other jobs go on where one has failed; whoever iterates may stop all the same.
        """
        worker = Worker(progress=progress)
        for job in jobs:
            start(job)
            yield job, attempt(partial(worker.do, job))


def attempt(work: Callable[[], T]) -> T | Exception:
    """What the work gives, or what stopped it."""
    try:
        return work()
    except UserError as error:
        return error
    except Exception as error:
        return of_the_machine(error) or error


def said(error: Exception) -> str:
    """The error in a line, as the command line says it."""
    if isinstance(error, FieldError):
        return error.as_flag()
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".strip().splitlines()[-1]


class _Pickler(pickle.Pickler):
    """Leaves behind what a meter holds of its own process (the model, the data, functions without a name), as None."""

    def reducer_override(self, obj: Any) -> Any:
        import torch

        if isinstance(obj, (Bench, EvalDataset, LoadedModel)) or "<" in getattr(obj, "__qualname__", ""):
            return type(None), ()
        if isinstance(obj, torch.Tensor) and obj.is_cuda:  # the GPU of one process is not that of another
            return _on_own_gpu, (obj.cpu(),)
        return NotImplemented


def _on_own_gpu(tensor: Any) -> Any:
    import torch

    return tensor.cuda() if torch.cuda.is_available() else tensor


def packed(found: Any) -> bytes:
    """What became of a job, to be sent to another process; an error with its traceback.

    A meter is good for being merged into another then, and no more.
    """
    if isinstance(found, Exception) and not isinstance(found, UserError):
        found = Fault("".join(traceback.format_exception(found)).strip())
    file = io.BytesIO()
    _Pickler(file, pickle.HIGHEST_PROTOCOL).dump(found)
    return file.getvalue()


def unpacked(content: bytes) -> Any:
    """What `packed` gave in a process of this very work: it is unpickled, so never of a file or of anyone else."""
    return pickle.loads(content)


def groups(requests: Sequence[Request], at_most: int | None) -> list[tuple[Request, ...]]:
    """The requests by model and data, of each no more than `at_most` together; those can share a pass."""
    passes: dict[Request, list[Request]] = {}
    for request in requests:
        passes.setdefault(request.unpruned(), []).append(request)
    return [
        tuple(of_pass[i : i + (at_most or len(of_pass))])
        for of_pass in passes.values()
        for i in range(0, len(of_pass), at_most or len(of_pass))
    ]


def without_artifacts(results: list[Result]) -> list[Result]:
    """The results without classifiers and the like, of which one process's are enough."""
    return [dataclasses.replace(result, artifacts={}) for result in results]
