"""Token Transforming: each token that goes is shared out among all that stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import StepwiseStrategy, cls_substitute_option, option
from anchorprune.tokens import (
    TokenPlan,
    Tokens,
    all_but,
    ascending,
    attention_received,
    gather_tokens,
    keep_with_prefix,
    key_directions,
    outside_autocast,
    top_indices,
)


@dataclass(frozen=True)
class TokenTransforming(StepwiseStrategy):
    """Keeps the patches that CLS attends to most and shares each other one out among them (after Token Transforming).

    Zeng et al., "Token Transforming: A Unified and Training-Free Token Compression Framework for Vision Transformer
    Acceleration", 2025: pruning and merging are products of the tokens with a matrix, and the one that loses least is
    many-to-many. Here each patch that goes is divided by a softmax of its cosines to those that stay, of keys, over
    `share_temperature`; what comes together is averaged, weighted by size. The idea is the paper's; the blocks, the
    temperature and the weights by size are ours.
    """

    name: ClassVar[str] = "token_transforming"
    acts: ClassVar = "inside"

    prune_layers: tuple[int, ...] = option((4, 7, 10), "act in these blocks, counted from 1, ascending", kind=int)
    share_temperature: float = option(
        0.1, "of the softmax by which a patch is shared out: towards 0 all of it goes to the one most like it"
    )
    cls_substitute: str = cls_substitute_option()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share_temperature < float("inf"):  # false for NaN too
            raise FieldError("share_temperature", self.share_temperature, "must be above 0")

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        import torch

        prefix, n = tokens.num_prefix_tokens, tokens.x.shape[1]
        stay = ascending(top_indices(attention_received(tokens, self.cls_substitute), keep_patches))
        go = all_but(stay, n - prefix)
        directions = key_directions(tokens)
        with outside_autocast(directions):
            alike = gather_tokens(directions, stay) @ directions.transpose(1, 2)  # [B, k, n]
        keep = keep_with_prefix(stay, tokens)
        own = (keep.unsqueeze(2) == torch.arange(n, device=keep.device)).to(alike.dtype)  # [B, K, N]
        shared = torch.nn.functional.pad((alike / self.share_temperature).softmax(dim=1), (prefix, 0, prefix, 0))
        shares = torch.where(own.amax(dim=1, keepdim=True) > 0, own, shared)
        most = stay.gather(1, alike.argmax(dim=1).gather(1, go))
        return TokenPlan(keep, merged=go + prefix, into=most + prefix, shares=shares)
