"""ToMe: bipartite soft matching in every block."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import Strategy, option, shown
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

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class MergingStrategy(Strategy):
    """A strategy that merges a number of tokens in every block; at most half of the patches there."""

    acts: ClassVar = "inside"
    budget_fields: ClassVar[tuple[str, ...]] = ("r",)

    r: tuple[int, ...] = option(
        (8,), "tokens merged away in each block; several: one for each block from the first on, then none", kind=int
    )
    r_inflect: float = option(
        0.0, "how r changes from block to block: −1, from 2r evenly down to 0; 0, not at all; 1, from 0 up to 2r"
    )
    prop_attn: str = option(
        "on", "on: attention counts a token as often as tokens are merged in it; off: once", ["on", "off"]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.r and type(self).r:
            raise FieldError("r", (), "give at least one number")
        if min(self.r, default=0) < 0:
            raise FieldError("r", shown(self.r), "must be 0 (nothing is merged) or more")
        if not -1 <= self.r_inflect <= 1:  # false for NaN too
            raise FieldError("r_inflect", self.r_inflect, "must lie between -1 (falling) and 1 (rising)")
        if self.r_inflect and len(self.r) > 1:
            raise FieldError("r_inflect", self.r_inflect, "give one r with it, or a number for each block without it")

    @property
    def size_weight(self) -> float:
        return float(self.prop_attn == "on")

    def amounts(self, num_blocks: int) -> Sequence[int]:
        """How many tokens each block would merge away, had it enough of them (ToMe's `parse_r`)."""
        r = self.r or MergingStrategy.r
        if len(r) > 1:
            return for_each_block("r", r, num_blocks, 0)
        first = int(r[0] * (1 - self.r_inflect))
        step = (2 * r[0] - 2 * first) / max(1, num_blocks - 1)
        return [int(first + step * i) for i in range(num_blocks)]

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        counts = {}
        for block, amount in enumerate(self.amounts(num_blocks), 1):
            num_patches -= min(amount, num_patches // 2)
            counts[block] = num_patches
        return counts

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        return [dataclasses.replace(self, r=(r,)) for r in range(num_patches // 2 + 1)]


def for_each_block(field: str, values: tuple[T, ...], num_blocks: int, after: T) -> Sequence[T]:
    """A value for each block: those that the field gives, from the first block on, then `after`.

    Raises:
        FieldError: more values than blocks.
    """
    if len(values) > num_blocks:
        raise FieldError(field, values, f"gives {len(values)} blocks a number; this tower has {num_blocks}")
    return values + (after,) * (num_blocks - len(values))


@dataclass(frozen=True)
class Tome(MergingStrategy):
    """Merges the r most similar pairs of patches in every block, by keys (ToMe).

    Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023: every second patch (set A) is matched to the most
    similar one of the others (set B) by the cosine of their keys, mean over heads; the r closest are merged, weighted
    by size; attention is proportional to size, unless `prop_attn` is off. docs/compatibility.md says what differs from
    the authors' code.
    """

    name: ClassVar[str] = "tome"

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        return merge_plan(tokens, *matched(tokens, keep_patches))


def matched(tokens: Tokens, keep_patches: int) -> tuple[Tensor, Tensor]:
    """Of every second patch those most like one of the others, as many as go, and that one: each `[B, M]`."""
    directions = key_directions(tokens)
    with outside_autocast(directions):
        similarity = directions[:, 1::2] @ directions[:, ::2].transpose(1, 2)  # [B, A, B]
    closest, partner = similarity.max(dim=2)
    chosen = top_indices(closest, directions.shape[1] - keep_patches)  # among A
    return 2 * chosen + 1, 2 * partner.gather(1, chosen)


def merge_plan(tokens: Tokens, merged: Tensor, into: Tensor) -> TokenPlan:
    """The plan that merges these patches `[B, M]` into those, both counted among the patches; all others are kept."""
    n, prefix = tokens.x.shape[1] - tokens.num_prefix_tokens, tokens.num_prefix_tokens
    return TokenPlan(keep_with_prefix(all_but(merged, n), tokens), merged=merged + prefix, into=into + prefix)
