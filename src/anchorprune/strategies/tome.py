"""ToMe: bipartite soft matching in every block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import Strategy, option
from anchorprune.tokens import (
    TokenPlan,
    Tokens,
    all_but,
    keep_with_prefix,
    key_directions,
    outside_autocast,
    top_indices,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MergingStrategy(Strategy):
    """A strategy that merges the same number of tokens in every block; at most half of the patches there."""

    acts: ClassVar = "inside"
    budget_fields: ClassVar = ("r",)

    r: int = option(8, "tokens merged away in each block")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.r < 0:
            raise FieldError("r", self.r, "must be 0 (nothing is merged) or more")

    @property
    def size_weight(self) -> float:
        return 1.0

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        counts = {}
        for block in range(1, num_blocks + 1):
            num_patches -= min(self.r, num_patches // 2)
            counts[block] = num_patches
        return counts

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        return [dataclasses.replace(self, r=r) for r in range(num_patches // 2 + 1)]


@dataclass(frozen=True)
class Tome(MergingStrategy):
    """Merges the r most similar pairs of patches in every block, by keys (ToMe).

    Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023: every second patch (set A) is matched to the most
    similar one of the others (set B) by the cosine of their keys, mean over heads; the r closest are merged, weighted
    by size; attention is proportional to size.
    """

    name: ClassVar[str] = "tome"

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        directions = key_directions(tokens)
        with outside_autocast(directions):
            similarity = directions[:, 1::2] @ directions[:, ::2].transpose(1, 2)  # [B, A, B]
        closest, partner = similarity.max(dim=2)
        chosen = top_indices(closest, directions.shape[1] - keep_patches)  # among A
        return merge_plan(tokens, 2 * chosen + 1, 2 * partner.gather(1, chosen))


def merge_plan(tokens: Tokens, merged: Tensor, into: Tensor) -> TokenPlan:
    """The plan that merges these patches `[B, M]` into those, both counted among the patches; all others are kept."""
    n, prefix = tokens.x.shape[1] - tokens.num_prefix_tokens, tokens.num_prefix_tokens
    return TokenPlan(keep_with_prefix(all_but(merged, n), tokens), merged=merged + prefix, into=into + prefix)
