"""The model of a request, pruned, from batches of images to arrays: the next batch is on its way meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from anchorprune.embeddings.loading import Loaded
from anchorprune.embeddings.request import DTYPES, EncodeRequest
from anchorprune.errors import FieldError
from anchorprune.evaluation.encoding import flops_of
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models.base import LoadedModel
from anchorprune.models.texts import encode_texts
from anchorprune.pruning import prune
from anchorprune.strategies.base import Strategy
from anchorprune.towers import find_tower

Array = np.ndarray[Any, Any]
MARGIN = 2  # times the size that is needed, at which a JPEG is decoded with `fast_decode` at least


@dataclass
class Encoded:
    """What came of a batch.

    Attributes:
        embeddings: `[B, D]` as they are written; rows that are not finite among them.
        texts: of the texts.
    """

    batch: Loaded
    embeddings: Array
    texts: Array | None
    encoding: float
    encoding_texts: float


class PrunedTower:
    """The model with the request's pruning in force, until `restore`.

    Attributes:
        transform: from a PIL image to what the tower takes.
        least: as `loading.Reader.least`.
        width: D.
        gmacs, gmacs_dense: for an image; None for a tower that anchorprune does not know, the first also for a
            cascade by a margin, of which nobody knows it before.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        request: EncodeRequest,
        runtime: Runtime,
        *,
        pruning: Strategy | None,
        fast_decode: bool,
    ) -> None:
        self.loaded, self.request, self.runtime = loaded, request, runtime
        self.model: Any = loaded.model
        self._stream = torch.cuda.Stream(runtime.device) if runtime.device.type == "cuda" else None
        self.transform, self.least = loaded.transform, None
        dense = flops_of(self.model)
        self.pruning = prune(self.model, pruning, small_images=fast_decode) if pruning else None
        try:
            if fast_decode:
                tower = find_tower(self.model)
                size = self.pruning.input_size if self.pruning else tower.image_size
                self.least = (MARGIN * max(size),) * 2
                if self.pruning:
                    self.transform = self.pruning.transform(loaded.transform)
            self.gmacs_dense = None if dense is None else dense / 2e9
            flops = flops_of(self.model) if pruning else dense
            self.gmacs = None if flops is None else flops / 2e9
            self.width = self._warm_up()
        except BaseException:
            self.restore()
            raise

    @property
    def about(self) -> dict[str, Any]:
        """What encode.json says of it."""
        return {"gmacs": self.gmacs, "gmacs_dense": self.gmacs_dense, "width": self.width}

    def restore(self) -> None:
        """Make the model what it was."""
        if self.pruning:
            self.pruning.restore()

    @torch.no_grad()
    def _warm_up(self) -> int:
        """D, of a grey image: what is wrong with the model is said before images are read."""
        from PIL import Image

        image = self.transform(Image.new("RGB", (64, 64), (128, 128, 128)))
        with self.pruning.off_the_record() if self.pruning else nullcontext():
            features = self._forward(image[None].to(self.runtime.device, self.runtime.images))
        if not bool(torch.isfinite(features).all()):
            fix = "its embeddings are not finite; try another precision or checkpoint"
            raise FieldError("model", self.request.model.name, fix)
        return int(features.shape[-1])

    def _forward(self, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            features: Tensor = self.model.encode_image(images).float()
        if self.request.normalize:
            features = F.normalize(features, dim=-1)
        return features

    def encode(self, batches: Iterator[Loaded]) -> Iterator[Encoded]:
        """Each batch, encoded. On CUDA the next one is copied and queued before the last one's are waited for."""
        before: Callable[[], Encoded] | None = None
        for batch in batches:
            launched = self._launch(batch)
            if before is not None:
                yield before()
            before = launched
        if before is not None:
            yield before()

    @torch.no_grad()
    def _launch(self, batch: Loaded) -> Callable[[], Encoded]:
        """Queues the work; what comes back waits for it."""
        if batch.images is None:
            none = self._array(torch.empty(0, self.width))
            return lambda: Encoded(batch, none, none if self.request.texts else None, 0.0, 0.0)
        images = self._copied(batch.images)
        clock = _Clock(self.runtime.device)
        features = self._array_on_device(self._forward(images))
        seconds = clock.stop()

        def finish() -> Encoded:
            embeddings = features.cpu().numpy()
            spent = seconds()
            start = time.perf_counter()
            texts = self._texts(batch)
            batch.images = None  # the workers' memory is theirs again
            return Encoded(batch, embeddings, texts, spent, time.perf_counter() - start)

        return finish

    def _copied(self, images: Tensor) -> Tensor:
        """On the device, in the precision of the weights; by a stream of its own, so that the one before is encoded."""
        if self._stream is None:
            return images.to(self.runtime.device, self.runtime.images)
        with torch.cuda.stream(self._stream):
            copied = images.to(self.runtime.device, non_blocking=True).to(self.runtime.images)
        current = torch.cuda.current_stream(self.runtime.device)
        current.wait_stream(self._stream)
        copied.record_stream(current)
        return copied

    @torch.no_grad()
    def _texts(self, batch: Loaded) -> Array | None:
        if not self.request.texts or not batch.columns:  # the check reads images alone
            return None
        assert self.loaded.tokenizer is not None
        tokens = self.loaded.tokenizer(batch.columns[self.request.texts])
        with self.runtime.autocast():
            features = encode_texts(self.model, tokens, self.runtime.device, normalize=self.request.normalize)
        return self._array(features)

    def _array_on_device(self, features: Tensor) -> Tensor:
        return features.to(getattr(torch, DTYPES[self.request.dtype]))

    def _array(self, features: Tensor) -> Array:
        array: Array = self._array_on_device(features).cpu().numpy()
        return array


class _Clock:
    """Seconds of the device's own work, without waiting for it to start."""

    def __init__(self, device: torch.device) -> None:
        self._events = None
        if device.type == "cuda":
            self._events = tuple(torch.cuda.Event(enable_timing=True) for _ in range(2))
            self._events[0].record()
        self._start = time.perf_counter()

    def stop(self) -> Callable[[], float]:
        """Call what comes back once the work is known to be done."""
        if self._events is None:
            seconds = time.perf_counter() - self._start
            return lambda: seconds
        first, last = self._events
        last.record()
        return lambda: first.elapsed_time(last) / 1000
