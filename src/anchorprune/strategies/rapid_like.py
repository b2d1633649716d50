"""After RAPID: early blocks drop what is there many times, late ones merge what CLS does not look at."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import cls_substitute_option, option
from anchorprune.strategies.tofu import Tofu
from anchorprune.strategies.tome import merge_plan
from anchorprune.tokens import TokenPlan, Tokens, attention_received, key_directions, outside_autocast, top_indices


@dataclass(frozen=True)
class RapidLike(Tofu):
    """Early blocks drop patches that are like many others, late ones merge those that CLS looks at least (after RAPID).

    Choi and Jang, "RAPID: Layer-Wise Redundancy-Aware Pruning and Importance-Driven Token Merging for Efficient ViT",
    2026: the idea is theirs, the formulas are ours. Pairs are those of ToMe. Early, a pair's patch of set A is dropped
    by its likeness to its partner plus `cue_weight` times its mean likeness to all others; late, it is merged into its
    partner by that likeness less `cue_weight` times the attention that CLS pays it, as a share of the most that it pays
    any patch. Likeness is the cosine of keys.
    """

    name: ClassVar[str] = "rapid_like"

    cue_weight: float = option(
        1.0, "of redundancy or importance against the likeness of a pair, 0 (as tofu matches) or more"
    )
    cls_substitute: str = cls_substitute_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.cue_weight < math.inf:  # false for NaN too
            raise FieldError("cue_weight", self.cue_weight, "must be 0 or more")

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        directions = key_directions(tokens)
        n = directions.shape[1]
        with outside_autocast(directions):
            alike = directions @ directions.transpose(1, 2)  # [B, n, n]
        closest, partner = alike[:, 1::2, ::2].max(dim=2)
        if self.drops(tokens):
            counts = (alike.sum(dim=2) - 1) / (n - 1)
        else:
            received = attention_received(tokens, self.cls_substitute)
            counts = -received / received.amax(dim=1, keepdim=True).clamp_min(1e-30)
        chosen = top_indices(closest + self.cue_weight * counts[:, 1::2], n - keep_patches)
        plan = merge_plan(tokens, 2 * chosen + 1, 2 * partner.gather(1, chosen))
        return TokenPlan(plan.keep) if self.drops(tokens) else plan
