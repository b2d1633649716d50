"""The baseline that a strategy has to beat."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from anchorprune.strategies.base import StepwiseStrategy, option
from anchorprune.tokens import TokenPlan, Tokens


@dataclass(frozen=True)
class Random(StepwiseStrategy):
    """One seeded random subset of the patch tokens, the same for all images: the baseline."""

    name: ClassVar[str] = "random"
    seed_field: ClassVar = "draw_seed"
    scores: ClassVar = False

    draw_seed: int = option(0, "which subset is drawn; quote the mean of several")

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        import torch

        x, prefix = tokens.x, tokens.num_prefix_tokens
        drawn = random.Random(self.draw_seed).sample(range(prefix, x.shape[1]), keep_patches)
        keep = torch.tensor([*range(prefix), *sorted(drawn)], device=x.device)
        return TokenPlan(keep.expand(x.shape[0], -1))
