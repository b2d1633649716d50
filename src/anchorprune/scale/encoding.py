"""`encode` in parts, for the workers of a cluster. No torch at import."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anchorprune.embeddings.request import EncodeRequest
from anchorprune.scale.jobs import Worker

if TYPE_CHECKING:
    from anchorprune.models.base import ModelSpec
    from anchorprune.scale.ray import Cluster

PARTS = 2  # for each worker: one that is faster, or comes later, takes more of them


@dataclass(frozen=True)
class Part:
    """Some of the output files of one request, in a folder that all machines share.

    Attributes:
        shard: (rank, world), as in `encode`.
        check: of how many images the unpruned embeddings are compared; by rank 0.
    """

    request: EncodeRequest
    out: str
    shard: tuple[int, int]
    check: int = 0

    @property
    def title(self) -> str:
        return f"part {self.shard[0] + 1} of {self.shard[1]} of {self.out}"

    @property
    def model(self) -> ModelSpec:
        return self.request.model

    def to_json(self) -> str:
        return json.dumps({**vars(self), "request": self.request.as_dict()})

    @classmethod
    def from_json(cls, text: str) -> Part:
        content = json.loads(text)
        return cls(
            EncodeRequest.from_dict(content["request"]), content["out"], tuple(content["shard"]), content["check"]
        )

    def done_by(self, worker: Worker) -> dict[str, Any]:
        """What `encode` gives."""
        from anchorprune.embeddings.run import encode

        request = self.request
        loaded = worker.loaded(request.model, request.compute, request.seed)
        return encode(request, self.out, shard=self.shard, check=self.check, model=loaded)


def encode_on(
    cluster: Cluster, request: EncodeRequest, out: str, *, check: int = 0, start: Callable[[Part], object]
) -> dict[str, Any]:
    """Encode on a cluster, into the files that one process writes; goes on where it was stopped.

    A file is written whole, by whoever has its part; the part of a lost worker is given to another, which finds the
    files that are finished.

    Returns:
        What encode.json holds.

    Raises:
        UserError: as `encode`.
    """
    request = dataclasses.replace(request, compute=cluster.compute(request.compute))
    world = PARTS * cluster.workers
    parts = [Part(request, out, (rank, world), check) for rank in range(world)]
    # Whoever ends last has summed up while others did; so once more, when nobody writes.
    found: Any = None
    for stage in (parts, [Part(request, out, (0, 1), check)]):
        for _, found in cluster.done(stage, start=start):
            if isinstance(found, Exception):
                raise found
    summary: dict[str, Any] = found
    return summary
