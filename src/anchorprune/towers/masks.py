"""The attention mask of a block's call: finding it, and cutting it to the tokens that are kept."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

# `[N, N]`, `[B·H, N, N]` or `[B or 1, H or 1, N, N]`.
Mask = Float[Tensor, "*any N N"] | Bool[Tensor, "*any N N"]


def find_mask(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mask | None:
    """The mask that a block is called with, by keyword or, as under gradient checkpointing, by position."""
    mask = kwargs.get("attn_mask")
    if mask is not None or len(args) == 1:
        return mask
    position = _position(block)
    return args[position] if position is not None and position < len(args) else None


def with_mask(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], mask: Mask
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call that `find_mask` found a mask in, with this one in its place."""
    if kwargs.get("attn_mask") is not None:
        return args, {**kwargs, "attn_mask": mask}
    position = _position(block)
    assert position is not None  # find_mask found one there
    return (*args[:position], mask, *args[position + 1 :]), kwargs


def _position(block: nn.Module) -> int | None:
    names = list(inspect.signature(type(block).forward).parameters)[1:]  # of the class: `prune` shadows the instance's
    return names.index("attn_mask") if "attn_mask" in names else None


def gather_mask(
    mask: Mask, keep: Int[Tensor, "B K"], num_heads: int
) -> Float[Tensor, "*other K K"] | Bool[Tensor, "*other K K"]:
    """An attention mask at the kept tokens of each image.

    Args:
        mask: `[N, N]`, `[B·H, N, N]`, or `[B or 1, H or 1, N, N]`; boolean or additive.
        keep: `[B, K]`.

    Returns:
        `[B·H, K, K]` for the first two, which is the form that per-image masks have there;
        `[B, H or 1, K, K]` for the last.
    """
    batch, kept = keep.shape
    n = mask.shape[-1]
    if mask.dim() == 2:
        per_head = mask.expand(batch, num_heads, n, n)
    elif mask.dim() == 3:
        per_head = mask.unflatten(0, (batch, -1))
    else:
        per_head = mask.expand(batch, -1, n, n)
    heads = per_head.shape[1]
    rows = per_head.gather(2, keep[:, None, :, None].expand(batch, heads, kept, n))
    both = rows.gather(3, keep[:, None, None, :].expand(batch, heads, kept, kept))
    return both if mask.dim() == 4 else both.flatten(0, 1)


def additive_mask(mask: Mask, batch: int) -> Float[Tensor, "*other N N"]:
    """A mask as an addend that broadcasts to `[B, H, N, N]`; True means masked, as in `nn.MultiheadAttention`."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(mask, -float("inf"))
    return mask.unflatten(0, (batch, -1)) if mask.dim() == 3 else mask
