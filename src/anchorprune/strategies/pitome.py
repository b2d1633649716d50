"""PiToMe: merging that protects tokens unlike all others."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import Strategy, option, shown
from anchorprune.strategies.tome import MergingStrategy, for_each_block, merge_plan
from anchorprune.tokens import (
    TokenPlan,
    Tokens,
    at_least_float32,
    gather_tokens,
    key_directions,
    outside_autocast,
    top_indices,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pitome(MergingStrategy):
    """Merges r pairs among the patches with the most neighbours, in every block; rare patches are spared (PiToMe).

    Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024, as the authors' code
    for image classification has it. In block ℓ of L the patches are put in the order of their energy, highest first.
    In the second half of the blocks the 2r first of them are candidates and the others are protected; in the first half
    all are candidates. Every second candidate, the first included, is matched to the most similar of the others, and
    the r closest are merged into them, weighted by size. docs/compatibility.md says where paper and code differ.
    """

    name: ClassVar[str] = "pitome"
    budget_fields: ClassVar = ("r", "ratio")

    r: tuple[int, ...] = option(
        (),
        "tokens merged away in each block; several: one for each block from the first on, then none (8 when ratio is "
        "not given either)",
        kind=int,
    )
    prop_attn: str = option(
        "off", "on: attention counts a token as often as tokens are merged in it; off: once", ["on", "off"]
    )
    ratio: tuple[float, ...] = option(
        (),
        "instead of r: the share of a block's patches that go on from it, 0.5 … 1; several: one for each block from "
        "the first on, then 1",
        kind=float,
    )
    margin: float = option(
        0.75, "similarity from which patches are neighbours, in block 1; falls evenly with the blocks, towards 0"
    )
    unprotected_share: float = option(
        0.5, "share of the blocks, from the first on, in which rare patches are not spared (0: spared in all) … 1"
    )
    metric: str = option(
        "keys", "keys (mean over heads), or tokens: what distances are measured between", ["keys", "tokens"]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(0.5 <= share <= 1 for share in self.ratio):
            fix = "must lie between 0.5 (a block merges half of its patches at most) and 1 (nothing is merged)"
            raise FieldError("ratio", shown(self.ratio), fix)
        if self.ratio and (self.r or self.r_inflect):
            raise FieldError("ratio", shown(self.ratio), "give it or r, not both", typed="give it or --r, not both")
        if not -1 <= self.margin <= 1:  # false for NaN too
            raise FieldError("margin", self.margin, "must lie between -1 and 1, as a cosine does")
        if not 0 <= self.unprotected_share <= 1:
            raise FieldError("unprotected_share", self.unprotected_share, "must lie between 0 and 1")

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        if not self.ratio:
            return super().schedule(num_patches, num_blocks)
        ratios = self.ratio * num_blocks if len(self.ratio) == 1 else self.ratio
        counts = {}
        for block, ratio in enumerate(for_each_block("ratio", ratios, num_blocks, 1.0), 1):
            num_patches -= math.floor(num_patches - num_patches * ratio)
            counts[block] = num_patches
        return counts

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        return [dataclasses.replace(self, r=(r,), ratio=()) for r in range(num_patches // 2 + 1)]

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        directions = self._directions(tokens)
        n = directions.shape[1]
        m = n - keep_patches
        with outside_autocast(directions):
            similarity = directions @ directions.transpose(1, 2)  # [B, n, n]
        similarity = similarity.maximum(similarity.transpose(1, 2))
        margin = self.margin * (1 - (tokens.block - 1) / tokens.num_blocks)
        unprotected = tokens.block <= math.ceil(self.unprotected_share * tokens.num_blocks)
        candidates = top_indices(energy(similarity, margin), n if unprotected else 2 * m)
        a, b = candidates[:, ::2], candidates[:, 1::2]
        pairs = gather_tokens(similarity, a).gather(2, b.unsqueeze(1).expand(-1, a.shape[1], -1))
        closest, partner = pairs.max(dim=2)
        chosen = top_indices(closest, m)
        return merge_plan(tokens, a.gather(1, chosen), b.gather(1, partner.gather(1, chosen)))

    def _directions(self, tokens: Tokens) -> Tensor:
        """What patches are compared by, scaled to length 1, `[B, n, d]`."""
        from torch.nn import functional as F

        if self.metric == "keys":
            return key_directions(tokens)
        return F.normalize(at_least_float32(tokens.x[:, tokens.num_prefix_tokens :]), dim=-1)


def energy(similarity: Tensor, margin: float) -> Tensor:
    """How much each patch has like itself, `[B, n]`: equation 4 of the paper with its α = 1, as the code has it.

    The sum over the other patches, divided by n, of s − margin where their similarity s is above it, and of
    exp(s − margin) − 1 below. (The code counts the patch itself too, which is the same for all.)
    """
    import torch
    from torch.nn import functional as F

    n = similarity.shape[-1]
    itself = torch.eye(n, dtype=torch.bool, device=similarity.device)
    return F.elu(similarity - margin).masked_fill(itself, 0.0).sum(dim=2) / n
