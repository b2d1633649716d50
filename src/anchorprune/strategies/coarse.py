"""What the README recommends: the image on a coarser grid of patches, thinned out (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import option
from anchorprune.strategies.thin import Thin


@dataclass(frozen=True)
class Coarse(Thin):
    """Shrinks the image to a coarser grid of patches, then drops those most like an anchor that stays (recommended).

    From N patches to f: the grid takes the share c of the way, to N · (f/N)^c patches or the few more that make whole
    rows, and `thin` the rest. Every token on the coarser grid is one that the tower knows, a patch of a smaller image,
    so that the blocks from the first on run on fewer tokens and none of them on a mixture. docs/method.md has the
    formulas, and says when to set c to 0: where what matters is small in the image.
    """

    name: ClassVar[str] = "coarse"

    grid_share: float = option(0.75, "share of the way to the budget that the coarser grid takes, 0 (thin) … 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.grid_share <= 1:  # false for NaN too
            raise FieldError("grid_share", self.grid_share, "must lie between 0 and 1")

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        counts = self.counts(num_patches)
        entering = min(num_patches, max(counts[0], round(num_patches * (counts[-1] / num_patches) ** self.grid_share)))
        return {0: entering, **self.steps(entering, counts, num_blocks)}
