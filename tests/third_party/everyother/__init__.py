"""A strategy that comes with a package of its own, as anybody could write one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from anchorprune.strategies.base import Strategy, option
from anchorprune.tokens import TokenPlan, Tokens, keep_with_prefix


@dataclass(frozen=True)
class EveryOther(Strategy):
    """Every second patch, whatever is in it."""

    name: ClassVar[str] = "every_other"

    prune_layer: int = option(2, "prune at the input of this block, counted from 1 (2 … number of blocks)")
    stride_of_kept: int = option(2, "one of so many patches is kept")

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        return {self.prune_layer: len(range(0, num_patches, self.stride_of_kept))}

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        return [replace(self, stride_of_kept=stride) for stride in range(1, num_patches + 1)]

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        import torch

        kept = torch.arange(keep_patches, device=tokens.x.device) * self.stride_of_kept
        return TokenPlan(keep_with_prefix(kept.expand(len(tokens.x), -1), tokens))
