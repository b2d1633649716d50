"""Positional embeddings on another grid than the tower's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from anchorprune.tokens import at_least_float32


def resample_positions(
    embedding: Float[Tensor, "old D"], old: tuple[int, int], new: tuple[int, int]
) -> Float[Tensor, "new D"]:
    """A positional embedding `[P + rows · columns, D]` for another grid; its first P rows stay as they are."""
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
