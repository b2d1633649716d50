"""Patches that have a twin are thinned out, a few in every block (docs/method.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import StepwiseStrategy, option
from anchorprune.tokens import (
    TokenPlan,
    Tokens,
    all_but,
    at_least_float32,
    gather_tokens,
    keep_with_prefix,
    key_directions,
    outside_autocast,
    top_indices,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Thin(StepwiseStrategy):
    """Drops the patches most like an anchor that stays, a few in every block of the tower's first half.

    Every second patch is an anchor. Of the others those go whose key is closest to an anchor's: what they say is said
    by it. Nothing is averaged. What is left counts for what is gone: γ · log(N/n) is added to the logits of the n
    patches that are left of N. After the last block's attention nothing reads the patches of a tower that pools its
    CLS token, so that its MLP runs on CLS alone. docs/method.md has the formulas and what each part is worth.
    """

    name: ClassVar[str] = "thin"
    acts: ClassVar = "inside"
    spares_last_mlp: ClassVar = True

    prune_layers: tuple[int, ...] = option(
        (),
        "act in these blocks, counted from 1, ascending (when not given from 2 on: thin to the middle, coarse to the "
        "last but one)",
        kind=int,
    )
    gamma: float = option(0.4, "weight of log(N/n) in the logits of the n patches that are left of N, 0 … 1")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.gamma <= 1:  # false for NaN too
            raise FieldError("gamma", self.gamma, "must lie between 0 and 1")

    @property
    def size_weight(self) -> float:
        return self.gamma

    def layers(self, num_blocks: int) -> tuple[int, ...]:
        return self.prune_layers or tuple(range(2, max(2, num_blocks // 2) + 1))

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        import torch

        directions = key_directions(tokens)
        batch, n = directions.shape[:2]
        left = torch.arange(n, device=directions.device).expand(batch, -1)
        while left.shape[1] > keep_patches:  # once, unless more than half are to go
            left = left.gather(1, _thinned(gather_tokens(directions, left), keep_patches))

        return standing_in(left, tokens)


def standing_in(patches: Tensor, tokens: Tokens) -> TokenPlan:
    """Keeps these patches `[B, m]`, counted among the n patches there are, and lets each stand for n/m of them."""
    import torch

    keep = keep_with_prefix(patches, tokens)
    prefix, n = tokens.num_prefix_tokens, tokens.x.shape[1]
    sizes = at_least_float32(tokens.x).new_ones(keep.shape[0], n) if tokens.sizes is None else tokens.sizes
    sizes = sizes.gather(1, keep)
    more = (n - prefix) / patches.shape[1]
    return TokenPlan(keep, sizes=torch.cat([sizes[:, :prefix], sizes[:, prefix:] * more], dim=1))


def _thinned(directions: Tensor, keep_patches: int) -> Tensor:
    """Those of n patches `[B, n, d]` that stay, ascending: `keep_patches`, or the anchors where they are more."""
    n = directions.shape[1]
    with outside_autocast(directions):
        likeness = (directions[:, 1::2] @ directions[:, ::2].transpose(1, 2)).amax(dim=2)  # to the closest anchor
    return all_but(2 * top_indices(likeness, min(n - keep_patches, n // 2)) + 1, n)
