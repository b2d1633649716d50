"""EViT: the patches that CLS attends to most, and the rest fused into one token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anchorprune.strategies.base import StepwiseStrategy, cls_substitute_option, option
from anchorprune.tokens import (
    TokenPlan,
    Tokens,
    ascending,
    attention_received,
    keep_with_prefix,
    positions,
    top_indices,
)


@dataclass(frozen=True)
class Evit(StepwiseStrategy):
    """The patches that CLS attends to most, and one token that the others are fused into (EViT).

    Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR
    2022, sections 3.2 and 3.3: the fused token is the sum of the others weighted by CLS attention. Here as their mean
    with these weights, unless `fusion` is "sum": without the training that the paper has, a token that is shorter by
    the share of attention that it holds is none that a block has ever seen. The budget counts the fused token, which
    stands where the first of those that it is made of stood. docs/compatibility.md says what differs from the authors'
    code.
    """

    name: ClassVar[str] = "evit"
    acts: ClassVar = "inside"

    prune_layers: tuple[int, ...] = option((4, 7, 10), "act in these blocks, counted from 1, ascending", kind=int)
    cls_substitute: str = cls_substitute_option()
    fusion: str = option(
        "mean",
        "the others, weighted by CLS attention, as their mean, or as the sum that the paper's models were trained with",
        ["mean", "sum"],
    )

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        import torch

        prefix, scores = tokens.num_prefix_tokens, attention_received(tokens, self.cls_substitute)
        order = top_indices(scores, scores.shape[1])
        fused = ascending(order[:, keep_patches - 1 :])  # the first hosts the others
        keep = keep_with_prefix(torch.cat([order[:, : keep_patches - 1], fused[:, :1]], dim=1), tokens)
        into = fused[:, :1].expand(-1, fused.shape[1] - 1) + prefix
        weights, mean = scores.clamp_min(1e-30), self.fusion == "mean"
        if not mean:  # of a mean they cancel out in a token that is alone
            weights = torch.where(positions(fused, scores.shape[1]) < 0, 1.0, weights)
        weights = torch.cat([scores.new_ones(scores.shape[0], prefix), weights], dim=1)
        return TokenPlan(keep, merged=fused[:, 1:] + prefix, into=into, weights=weights, averaged=mean)
