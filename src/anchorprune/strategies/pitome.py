"""PiToMe: merging that protects tokens unlike all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.strategies.tome import MergingStrategy, merge_plan
from anchorprune.tokens import TokenPlan, Tokens, key_directions, outside_autocast, top_indices

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pitome(MergingStrategy):
    """Merges r pairs among the patches with the most neighbours, in every block; rare patches are spared (PiToMe).

    Tran et al., "Accelerating Transformers with Spectrum-Preserving Token Merging", NeurIPS 2024: of the 2r patches
    with the highest energy, every second is merged into the most similar of the others. Weighted by size; attention
    is proportional to size.
    """

    name: ClassVar[str] = "pitome"

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        directions = key_directions(tokens)
        n = directions.shape[1]
        m = n - keep_patches
        with outside_autocast(directions):
            similarity = directions @ directions.transpose(1, 2)  # [B, n, n]
        similarity = similarity.maximum(similarity.transpose(1, 2))
        by_energy = top_indices(energy(similarity, 0.9 - 0.9 * tokens.depth), 2 * m)
        into, merged = by_energy[:, ::2], by_energy[:, 1::2]
        pairs = similarity.gather(1, merged.unsqueeze(2).expand(-1, -1, n)).gather(
            2, into.unsqueeze(1).expand(-1, m, -1)
        )
        return merge_plan(tokens, merged, into.gather(1, pairs.argmax(dim=2)))


def energy(similarity: Tensor, margin: float) -> Tensor:
    """How much each patch has like itself, `[B, n]`: equation 4 of the paper with its α = 1.

    The sum over the other patches, divided by n, of s where s ≥ margin and of exp(s − margin) − 1 below, for their
    similarity s.
    """
    import torch

    n = similarity.shape[-1]
    felt = similarity.where(similarity >= margin, (similarity - margin).exp() - 1)
    itself = torch.eye(n, dtype=torch.bool, device=similarity.device)
    return felt.masked_fill(itself, 0.0).sum(dim=2) / n
