"""An image on a coarser grid of patches: the same image, shrunk, so that each patch shows more of it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from anchorprune.tokens import TokenPlan, all_but, at_least_float32

Grid = tuple[int, int]


def coarser(grid: Grid, count: int) -> Grid:
    """Rows and columns of the smallest grid of at least `count` patches that has the shape of `grid`, to one row."""
    rows, columns = grid
    best = grid
    # A loop, not `min` with a key, which torch.compile cannot trace in torch 2.10.
    for r in range(rows, 0, -1):
        for c in range(1, columns + 1):
            fits = r * c >= count and abs(r * columns - c * rows) <= max(grid)
            if fits and r * c < best[0] * best[1]:
                best = (r, c)
    return best


def shrink(images: Float[Tensor, "B 3 _ _"], height: int, width: int) -> Float[Tensor, "B 3 {height} {width}"]:
    """Images `[B, 3, *, *]` at another size in pixels: bicubic, antialiased, as preprocessing does it."""
    resized = F.interpolate(
        at_least_float32(images), size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.to(images.dtype)


def pixel_variance(images: Float[Tensor, "B C _ _"], height: int, width: int) -> Float[Tensor, "B n"]:
    """The variance within each patch of `height` × `width` pixels, all colours together, row by row of patches."""
    rows, columns = images.shape[2] // height, images.shape[3] // width
    whole = at_least_float32(images)[:, :, : rows * height, : columns * width]
    patches = whole.unflatten(3, (columns, width)).unflatten(2, (rows, height)).permute(0, 2, 4, 1, 3, 5)
    values = patches.flatten(3)
    # Tensor.var warns of no images.
    return (values - values.mean(dim=3, keepdim=True)).square().mean(dim=3).flatten(1)


def as_plan(old: Grid, new: Grid, prefix: int, batch: int, device: torch.device) -> TokenPlan:
    """What a coarser grid does to the image's own tokens, as if they were merged.

    Kept are those in which a new patch has its centre; each other one goes into the new patch that its centre lies in.
    """
    # By arithmetic on the device: copies from the host would wait for it, and cannot be captured in a CUDA graph.
    rows, columns = (
        (2 * torch.arange(there, device=device) + 1) * whole // (2 * there)
        for there, whole in zip(new, old, strict=True)
    )
    centres = (rows.unsqueeze(1) * old[1] + columns).flatten().expand(batch, -1)  # counted among the patches
    merged = all_but(centres, old[0] * old[1])
    row = (2 * (merged // old[1]) + 1) * new[0] // (2 * old[0])
    column = (2 * (merged % old[1]) + 1) * new[1] // (2 * old[1])
    into = centres.gather(1, row * new[1] + column)
    kept = torch.cat([torch.arange(prefix, device=device).expand(batch, -1), centres + prefix], dim=1)
    return TokenPlan(kept, merged=merged + prefix, into=into + prefix)
