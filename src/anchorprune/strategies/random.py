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
        keep = torch.tensor(_drawn(self.draw_seed, prefix, x.shape[1], keep_patches), device=x.device)
        return TokenPlan(keep.expand(x.shape[0], -1))


def _drawn(seed: int, prefix: int, n: int, count: int) -> tuple[int, ...]:
    """The prefix and `count` of the other tokens below n, ascending."""
    return (*range(prefix), *sorted(random.Random(seed).sample(range(prefix, n), count)))


# As `torch.compiler.assume_constant_result` marks it, for which torch would have to be imported: torch.compile takes
# what it gives as it is. Before 2.12 it cannot trace the drawing.
_drawn._dynamo_marked_constant = True  # type: ignore[attr-defined]
