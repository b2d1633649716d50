"""Positional embeddings on another grid than the tower's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.tokens import at_least_float32, exporting


def resample_positions(
    embedding: Float[Tensor, "old D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "new D"]:
    """A positional embedding `[P + rows · columns, D]` for another grid; its first P rows stay as they are."""
    fixed = _collected()
    key = (tuple(embedding.shape), old, new)
    if fixed is not None and exporting():
        return fixed[key]
    resampled = _resampled(embedding, old, new)
    if fixed is not None:
        fixed[key] = resampled
    return resampled


# What was resampled, by shape and grids, while somebody collects it: a tower has one embedding of its positions.
_FIXED: ContextVar[dict[Any, Tensor] | None] = ContextVar("fixed positions", default=None)


@contextmanager
def fixed_positions() -> Iterator[None]:
    """Within, positions that a forward pass resamples are constants of what torch.export traces after it.

    Runtimes resample in other ways, and would do it for each image.
    """
    token = _FIXED.set({})
    try:
        yield
    finally:
        _FIXED.reset(token)


def written_to_a_file() -> bool:
    """Whether `anchorprune.export` traces this: then a tower is called with images and nothing else."""
    return _collected() is not None and exporting()


def _collected() -> dict[Any, Tensor] | None:
    """What `fixed_positions` collects. Not under torch.compile, which on torch 2.11 cannot trace a context variable."""
    return None if torch.compiler.is_dynamo_compiling() else _FIXED.get()


def _resampled(embedding: Float[Tensor, "old D"], old: tuple[int, int], new: tuple[int, int]) -> Float[Tensor, "new D"]:
    prefix = embedding.shape[0] - old[0] * old[1]
    image = at_least_float32(embedding[prefix:]).T.unflatten(1, old).unsqueeze(0)
    resized = F.interpolate(image, size=new, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([embedding[:prefix], resized[0].flatten(1).T.to(embedding.dtype)])


class Positions:
    """In place of a tower's positional embedding `[P + rows · columns, D]`: for the grid of the pass that asks.

    The tower asks by `.to(dtype)`; for all else it is the embedding itself. Resampled from the weights as they are in
    that pass, so that weights that are loaded, moved or trained count, and gradients reach them.
    """

    def __init__(self, module: nn.Module, name: str, old: tuple[int, int], grids: Callable[[], Any]) -> None:
        self._module, self._name, self._old, self._grids = module, name, old, grids

    def to(self, dtype: torch.dtype) -> Tensor:
        module = self._module
        own: Any = module._parameters.get(self._name)
        if own is None:
            own = module._buffers[self._name]
        return resample_positions(own, self._old, self._grids()[0]).to(dtype)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_module" not in self.__dict__:  # not made yet, as copies and pickles are at first
            raise AttributeError(name)
        own = self._module._parameters.get(self._name)
        return getattr(self._module._buffers[self._name] if own is None else own, name)
