"""An image on a coarser grid of patches: the same image, shrunk, so that each patch shows more of it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from anchorprune.tokens import TokenPlan, at_least_float32

Grid = tuple[int, int]


def coarser(grid: Grid, count: int) -> Grid:
    """Rows and columns of the smallest grid of at least `count` patches that has the shape of `grid`, to one row."""
    rows, columns = grid
    fitting = [
        (r, c)
        for r in range(1, rows + 1)
        for c in range(1, columns + 1)
        if r * c >= count and abs(r * columns - c * rows) <= max(grid)
    ]
    return min(fitting, key=lambda g: (g[0] * g[1], -g[0]), default=grid)


def shrink(images: Float[Tensor, "B 3 _ _"], height: int, width: int) -> Float[Tensor, "B 3 {height} {width}"]:
    """Images `[B, 3, *, *]` at another size in pixels: bicubic, antialiased, as preprocessing does it."""
    resized = F.interpolate(
        at_least_float32(images), size=(height, width), mode="bicubic", antialias=True, align_corners=False
    )
    return resized.to(images.dtype)


def as_plan(old: Grid, new: Grid, prefix: int, batch: int, device: torch.device) -> TokenPlan:
    """What a coarser grid does to the image's own tokens, as if they were merged.

    Kept are those in which a new patch has its centre; each other one goes into the new patch that its centre lies in.
    """
    rows = [(2 * a + 1) * old[0] // (2 * new[0]) for a in range(new[0])]
    columns = [(2 * a + 1) * old[1] // (2 * new[1]) for a in range(new[1])]
    centres = [prefix + row * old[1] + column for row in rows for column in columns]
    there = set(centres)
    merged, into = [], []
    for token in range(prefix, prefix + old[0] * old[1]):
        row, column = divmod(token - prefix, old[1])
        if token not in there:
            merged.append(token)
            into.append(
                centres[(2 * row + 1) * new[0] // (2 * old[0]) * new[1] + (2 * column + 1) * new[1] // (2 * old[1])]
            )

    def for_all(indices: list[int]) -> Tensor:
        return torch.tensor(indices, dtype=torch.long, device=device).expand(batch, -1)

    return TokenPlan(for_all([*range(prefix), *centres]), merged=for_all(merged), into=for_all(into))
