"""ToFu: ToMe's pairs, of which early blocks drop one and late blocks merge both at the longer one's length."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import option
from anchorprune.strategies.tome import MergingStrategy, matched, merge_plan
from anchorprune.tokens import TokenPlan, Tokens


@dataclass(frozen=True)
class Tofu(MergingStrategy):
    """Matches pairs as ToMe does; early blocks drop one of each, late ones merge them at full length (ToFu).

    Kim et al., "Token Fusion: Bridging the Gap between Token Pruning and Token Merging", WACV 2024: early blocks answer
    an average of two tokens with something else than the average of two answers, so there the patch of set A is
    dropped. Late ones are near to linear, and there the two become their average, weighted by size, at the length of
    the longest of them (MLERP): an average alone is shorter than tokens are. `pruned_share` is where one becomes the
    other; its default is ours.
    """

    name: ClassVar[str] = "tofu"

    pruned_share: float = option(
        0.5, "share of the blocks, from the first on, that drop instead of merging, 0 (none) … 1 (all)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pruned_share <= 1:  # false for NaN too
            raise FieldError("pruned_share", self.pruned_share, "must lie between 0 and 1")

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        plan = merge_plan(tokens, *matched(tokens, keep_patches))
        return TokenPlan(plan.keep) if self.drops(tokens) else dataclasses.replace(plan, at_length=True)

    def drops(self, tokens: Tokens) -> bool:
        """Whether this block drops a patch of each pair instead of merging it."""
        return tokens.block <= math.ceil(self.pruned_share * tokens.num_blocks)
