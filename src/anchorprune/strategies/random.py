"""The baseline that a strategy has to beat."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import Strategy, option
from anchorprune.tokens import TokenPlan, Tokens


@dataclass(frozen=True)
class Random(Strategy):
    """One seeded random subset of the patch tokens, the same for all images: the baseline."""

    name: ClassVar[str] = "random"

    keep_patches: int = option(60, "number of patch tokens kept (the described defaults keep 10 + 50)")
    draw_seed: int = option(0, "which subset is drawn; quote the mean of several")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep_patches < 1:
            raise FieldError("keep_patches", self.keep_patches, "must be 1 or more")

    def keep_count(self, num_tokens: int, num_prefix_tokens: int) -> int:
        return min(num_tokens, num_prefix_tokens + self.keep_patches)

    def smaller_budget(self, num_patches: int) -> str:
        return f"--keep_patches {max(1, round(num_patches * 60 / 196))}"

    def plan(self, tokens: Tokens) -> TokenPlan:
        import torch

        x, prefix = tokens.x, tokens.num_prefix_tokens
        drawn = random.Random(self.draw_seed).sample(range(prefix, x.shape[1]), self.keep_patches)
        keep = torch.tensor([*range(prefix), *sorted(drawn)], device=x.device)
        return TokenPlan(keep.expand(x.shape[0], -1))
