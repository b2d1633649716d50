"""The patches that CLS attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.errors import UserError
from anchorprune.strategies.base import StepwiseStrategy, option
from anchorprune.tokens import TokenPlan, Tokens, cls_attention, keep_with_prefix, top_indices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ClsAttention(StepwiseStrategy):
    """The patches that CLS attends to most in the block (EViT's selection); the others are dropped.

    Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR
    2022, section 3.2, without the fusing.
    """

    name: ClassVar[str] = "cls_attention"
    acts: ClassVar = "inside"

    prune_layers: tuple[int, ...] = option((4, 7, 10), "act in these blocks, counted from 1, ascending", kind=int)

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        return TokenPlan(keep_with_prefix(top_indices(patch_scores(tokens), keep_patches), tokens))


def patch_scores(tokens: Tokens) -> Tensor:
    """The attention that CLS pays each patch, `[B, n]`, mean over heads.

    Raises:
        UserError: a tower without CLS token.
    """
    if tokens.num_prefix_tokens < 1:
        raise UserError("cls_attention and evit select by CLS attention: this tower has no CLS token")
    return cls_attention(*tokens.query_key())[:, tokens.num_prefix_tokens :]
