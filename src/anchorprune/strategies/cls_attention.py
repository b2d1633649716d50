"""The patches that CLS attends to most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anchorprune.strategies.base import StepwiseStrategy, cls_substitute_option, option
from anchorprune.tokens import TokenPlan, Tokens, attention_received, keep_with_prefix, top_indices


@dataclass(frozen=True)
class ClsAttention(StepwiseStrategy):
    """The patches that CLS attends to most in the block (EViT's selection); the others are dropped.

    Liang et al., "Not All Patches are What You Need: Expediting Vision Transformers via Token Reorganizations", ICLR
    2022, section 3.2, without the fusing.
    """

    name: ClassVar[str] = "cls_attention"
    acts: ClassVar = "inside"

    prune_layers: tuple[int, ...] = option((4, 7, 10), "act in these blocks, counted from 1, ascending", kind=int)
    cls_substitute: str = cls_substitute_option()

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        return TokenPlan(
            keep_with_prefix(top_indices(attention_received(tokens, self.cls_substitute), keep_patches), tokens)
        )
