"""What a pruned tower did in one forward pass, and what follows from it for the image's own tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from anchorprune.pruning.grid import as_plan
from anchorprune.tokens import TokenPlan, positions


@dataclass
class Record:
    """What one forward pass did, block by block (counted from 1).

    Attributes:
        entered: batch size, N and device of the tokens at the first block that the strategy acts in; of those that the
            image has on its own grid, where the strategy gives it a coarser one.
        counts: the strategy's schedule for that N.
        plans: what the strategy returned for each block that it acted in; None where nothing was dropped. Of 0, where
            the image has a coarser grid: what that did, as if tokens had been merged; there once it was asked for.
        sizes: `[B, N]` for the tokens that enter a block, once some are merged.
        pixel_variance: `[B, n]`, of each patch of the images, where the strategy reads pixels.
        grids: the coarser grid that the image was given, and the one that it has at its own size; None where it has
            the latter.
    """

    entered: tuple[int, int, torch.device] | None = None
    counts: dict[int, int] = field(default_factory=dict)
    plans: dict[int, TokenPlan | None] = field(default_factory=dict)
    sizes: dict[int, Tensor | None] = field(default_factory=dict)
    pixel_variance: Float[Tensor, "B n"] | None = None
    grids: tuple[tuple[int, int], tuple[int, int]] | None = None

    def plans_before(self, block: int | None) -> list[TokenPlan]:
        """What was done before this block, counted from 1, in order; None: in all."""
        if self.grids is not None and self.entered is not None and 0 not in self.plans and (block is None or block > 0):
            (new, old), (batch, n, device) = self.grids, self.entered
            self.plans[0] = as_plan(old, new, n - old[0] * old[1], batch, device)
        plans = [(number, plan) for number, plan in sorted(self.plans.items()) if block is None or number < block]
        return [plan for _, plan in plans if plan is not None]

    def kept_before(self, block: int | None) -> Int[Tensor, "B K"] | None:
        """`[B, K]`, which of the image's own tokens are left when this block begins; None before a forward pass."""
        if self.entered is None:
            return None
        batch, n, device = self.entered
        kept = torch.arange(n, device=device).expand(batch, -1)
        for plan in self.plans_before(block):
            kept = kept.gather(1, plan.keep)
        return kept

    def assignment(self) -> Int[Tensor, "B N"] | None:
        """`[B, N]`, the place among those left at the end where each token went, −1 for dropped ones."""
        if self.entered is None:
            return None
        batch, n, device = self.entered
        place = torch.arange(n, device=device).expand(batch, -1)
        for plan in self.plans_before(None):
            # One column more, the last: −1 leads there, and out of it.
            step = positions(plan.keep, n)
            if plan.merged is not None and plan.into is not None:
                step = step.scatter(1, plan.merged, step.gather(1, plan.into))
            place = torch.cat([step, step.new_full((batch, 1), -1)], dim=1).gather(1, place % (n + 1))
            n = plan.keep.shape[1]
            place = torch.where(place < 0, n, place)
        return torch.where(place == n, -1, place)

    def tokens_by_block(self, blocks: int) -> list[int] | None:
        """How many tokens the MLP of each of the tower's blocks saw."""
        if self.entered is None:
            return None
        tokens, counts = self.entered[1], []
        if self.grids is not None:
            new, old = self.grids
            tokens += new[0] * new[1] - old[0] * old[1]
        for number in range(1, blocks + 1):
            if (plan := self.plans.get(number)) is not None:
                tokens = plan.keep.shape[1]
            counts.append(tokens)
        return counts
