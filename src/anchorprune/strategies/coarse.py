"""What the README recommends: a coarser grid, thinned out, and late what the others look at (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import falling, option
from anchorprune.strategies.thin import Thin, standing_in
from anchorprune.tokens import TokenPlan, Tokens, attention_from, top_indices


@dataclass(frozen=True)
class Coarse(Thin):
    """Shrinks the image to a coarser grid, thins it out, and late keeps the patches that others look at (recommended).

    From N patches to f, and three that share the way. The grid takes c of it, to n = N · (f/N)^c patches or the few
    more that make whole rows: every token on it is one that the tower knows, a patch of a smaller image. Of what is
    left the blocks of the tower's second half take the share d: they drop the patches that get the least attention,
    from all tokens. The blocks of the first half take the rest as `thin` does, whose γ holds throughout.
    docs/method.md has the formulas and what each is worth.
    """

    name: ClassVar[str] = "coarse"

    grid_share: float = option(0.5, "share of the way to the budget that the coarser grid takes, 0 (none) … 1")
    late_share: float = option(0.9, "share of the rest that the second half of the tower takes, 0 (none) … 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("grid_share", "late_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:  # false for NaN too
                raise FieldError(name, share, "must lie between 0 and 1")

    def layers(self, num_blocks: int) -> tuple[int, ...]:
        return self.prune_layers or tuple(range(2, max(2, num_blocks - 1) + 1))

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        counts, layers = self.counts(num_patches), self.layers(num_blocks)
        entering = min(num_patches, max(counts[0], round(num_patches * (counts[-1] / num_patches) ** self.grid_share)))
        early = [layer for layer in layers if not _late(layer / num_blocks)]
        late = [layer for layer in layers if _late(layer / num_blocks)]
        if len(counts) > 1 or not (early and late):
            return {0: entering, **self.steps(entering, counts, num_blocks)}
        share = min(1.0, counts[0] / entering)
        middle = round(entering * share ** (1 - self.late_share))
        return {0: entering, **falling(entering, middle, early), **falling(middle, counts[0], late)}

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        if not _late(tokens.depth):
            return super().plan(tokens, keep_patches)
        received = attention_from(*tokens.query_key())[:, tokens.num_prefix_tokens :]
        return standing_in(top_indices(received, keep_patches), tokens)


def _late(depth: float) -> bool:
    return depth > 0.5
