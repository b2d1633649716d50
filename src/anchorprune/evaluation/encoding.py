"""Encoding images by many ways of pruning: what the unpruned blocks give is computed once for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anchorprune.errors import FieldError, UserError
from anchorprune.evaluation.runtime import Runtime
from anchorprune.models.checkpoint import not_finite
from anchorprune.pruning import Pruning, prune
from anchorprune.pruning.cost import clock, image_tower_flops
from anchorprune.strategies.base import Strategy
from anchorprune.towers import Tower, find_tower


def _features(model: Any, images: Tensor) -> Tensor:
    return F.normalize(model.encode_image(images).float(), dim=-1)


def _is_number(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.is_floating_point()


def _not_finite(tensor: Tensor) -> int:
    """How many of its rows hold a number that is not finite."""
    return int((~tensor.isfinite()).reshape(len(tensor), -1).any(dim=1).sum())


class Encoder:
    """Encodes batches with one strategy, or none, and keeps the time that it takes.

    The model stays pruned from the making of the encoder to `restore`: a pruning that came and went with each batch
    would drop what torch.compile has compiled.

    Attributes:
        pruning: the strategy's handle, in force; None unpruned.
        images: how many it has encoded.
    """

    def __init__(
        self,
        model: Any,
        strategy: Strategy | None,
        runtime: Runtime,
        forward: Callable[[Any, Tensor], Tensor] = _features,
        dense_flops: int | None = None,
    ) -> None:
        """
        Args:
            model: unpruned, and this encoder's alone: a `sharing_copy` where several encode side by side.
            forward: what is wanted of the model for a batch of images, as `Task.forward`; normalised features.
            dense_flops: of the unpruned tower; None where it is not known.
        """
        self.model, self.strategy, self.runtime, self._forward = model, strategy, runtime, forward
        self.pruning: Pruning | None = prune(model, strategy) if strategy else None
        try:
            self._flops = flops_of(model) if strategy else dense_flops
        except BaseException:
            self.restore()
            raise
        if self.flops is not None and dense_flops is not None and self.flops > dense_flops:
            warnings.warn(
                f"this budget costs {self.flops / 2e9:.2f} GMACs, selection included, more than the "
                f"{dense_flops / 2e9:.2f} of not pruning: lower it",
                stacklevel=2,
            )
        self.images = 0
        self._seconds: list[tuple[int, float]] = []

    def __call__(self, images: Tensor, unpruned: UnprunedBlocks | None = None) -> Tensor:
        """What `forward` gives for `images`.

        Args:
            unpruned: what the unpruned blocks gave for these very images: those before the first that is pruned do
                not run again, and count with the time that they took.

        Raises:
            UserError: features that are not finite, which any metric would rank in silence.
        """
        first = self.pruning.first_block if self.pruning else 1
        device = self.runtime.device
        with unpruned.skipped(self.model, first) if unpruned else nullcontext():
            start = clock(device)
            out = self._out(images)
            end = clock(device)
        count = images.shape[:-3].numel()  # of a sample there may be several
        self._seconds.append((count, unpruned.seconds(first, start, end) if unpruned else end - start))
        self.images += len(images)
        self._check_finite(out, images)
        return out

    def encode(self, images: Tensor) -> Tensor:
        """The same of images that do not count, neither as images nor in time."""
        with self.pruning.off_the_record() if self.pruning else nullcontext():
            out = self._out(images)
        self._check_finite(out, images)
        return out

    @property
    def flops(self) -> int | None:
        """Of the image tower for one image, selection included; of a cascade the mean over those that it has encoded.

        None for a tower that anchorprune does not know.
        """
        # Of the handle: the model may be restored by now.
        return self.pruning.flops if self.pruning and self.pruning.shares else self._flops

    def _check_finite(self, out: Tensor, images: Tensor) -> None:
        if not out.is_floating_point():
            return
        lengths = out.float().norm(dim=-1)
        bad = ~lengths.isfinite() | (lengths == 0)  # to which normalising makes features whose length overflows
        if not bool(bad.any()):
            return
        count = int(bad.reshape(len(images), -1).any(dim=1).sum())
        found = f"{count} of {len(images)} images of a batch have features of zeros or that are not finite numbers"
        if broken := _not_finite(images):
            raise UserError(f"{found}: the pixels of {broken} of them are not finite already; look at their transform")
        if held := not_finite(self.model):
            raise UserError(
                f"{found}: the model's {held}; give weights that are whole"
                + (", or fp32: fp16 may be what they overflow in" if self.runtime.precision == "fp16" else "")
            )
        fix = f"{found}: do they overflow? then give bf16 or fp32" if self.runtime.precision != "fp32" else found
        raise FieldError("precision", self.runtime.precision, fix)

    def _out(self, images: Tensor) -> Tensor:
        with self.runtime.autocast():
            return self._forward(self.model, images)

    def restore(self) -> None:
        """Make the model what it was."""
        if self.pruning:
            self.pruning.restore()

    @property
    def seconds(self) -> float:
        """All that encoding took."""
        return sum(seconds for _, seconds in self._seconds)

    @property
    def images_per_second(self) -> float:
        """Of the encoder alone: no decoding, no copying. Without the first batch, which also pays for warming up."""
        timed = self._seconds[1:] or self._seconds or [(0, 1.0)]  # of a shard without images
        return sum(n for n, _ in timed) / sum(seconds for _, seconds in timed)


def flops_of(model: Any) -> int | None:
    """None for a tower that anchorprune does not know; unpruned it can be evaluated all the same."""
    try:
        return image_tower_flops(model)
    except UserError:
        return None


class EncodersInTurns:
    """Several encoders of one model, each batch through all of them.

    The unpruned one, where it is among them, goes first and hands on what the others share with it. These start each
    batch with another one, so that what else the machine does slows all of them.
    """

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        self._encoders = encoders
        self._unpruned = next((i for i, encoder in enumerate(encoders) if encoder.pruning is None), None)
        self._others = [i for i in range(len(encoders)) if i != self._unpruned]
        self._batches = 0

    def __call__(self, images: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The number of each encoder and what it gives for `images`."""
        blocks = None
        if self._unpruned is not None:
            unpruned = self._encoders[self._unpruned]
            if firsts := {encoder.pruning.first_block for encoder in self._encoders if encoder.pruning}:
                blocks = UnprunedBlocks(find_tower(unpruned.model), firsts, unpruned.runtime.device)
            with blocks.recorded() if blocks else nullcontext():
                features = unpruned(images)
            yield self._unpruned, features
        turn = self._batches % max(1, len(self._others))
        self._batches += 1
        for i in self._others[turn:] + self._others[:turn]:
            yield i, self._encoders[i](images, blocks)


class UnprunedBlocks:
    """What the unpruned blocks of a tower give for one batch, for those who prune only later.

    Bit for bit what the blocks would give again, on any tower: the output of the block before the first that is pruned
    stands in for that of each block up to there. Only the patch embedding runs again.
    """

    def __init__(self, tower: Tower, firsts: set[int], device: torch.device) -> None:
        """`firsts`: the blocks, counted from 1, that somebody prunes first."""
        self._blocks, self._firsts, self._device = tower.blocks, firsts, device
        self._outputs: dict[int, Any] = {}
        self._until: dict[int, float] = {}
        self._start = self._resumed = 0.0

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """The forward pass within is the unpruned one."""
        hooks = [
            self._blocks[first - 2].register_forward_hook(partial(self._keep, first))
            for first in self._firsts
            if first > 1
        ]
        self._start = clock(self._device)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _keep(self, first: int, block: Any, args: Any, output: Any) -> None:
        self._outputs[first] = output
        self._until[first] = clock(self._device) - self._start

    @contextmanager
    def skipped(self, model: Any, first: int) -> Iterator[None]:
        """In forward passes of `model` within, a copy of the unpruned one, the blocks before `first` do not run."""
        blocks = find_tower(model).blocks[: first - 1] if first in self._outputs else []

        def forward(*args: Any, **kwargs: Any) -> Any:
            self._resumed = clock(self._device)
            return self._outputs[first]

        earlier = [block.__dict__.get("forward") for block in blocks]
        for block in blocks:
            block.__dict__["forward"] = forward
        try:
            yield
        finally:
            for block, own in zip(blocks, earlier, strict=True):
                del block.__dict__["forward"]
                if own is not None:
                    block.__dict__["forward"] = own

    def seconds(self, first: int, start: float, end: float) -> float:
        """What a pass from `start` to `end` would have taken with the blocks that it skipped."""
        return self._until[first] + end - self._resumed if first in self._outputs else end - start
