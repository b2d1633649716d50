"""The patches that lie furthest from each other: farthest-point sampling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.strategies.base import StepwiseStrategy, option
from anchorprune.tokens import TokenPlan, Tokens, at_least_float32, keep_with_prefix, key_directions, outside_autocast

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class MaxMin(StepwiseStrategy):
    """The patches that lie furthest from each other: greedy max-min diversity (DivPrune).

    Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models", CVPR 2025: after the
    patch that is furthest from its nearest neighbour, always the one that is furthest from all chosen so far, by
    cosine distance; here of the block's keys, or as in the paper of the tokens themselves.
    """

    name: ClassVar[str] = "max_min"
    acts: ClassVar = "inside"

    metric: str = option(
        "keys", "keys (mean over heads), or tokens: what distances are measured between", ["keys", "tokens"]
    )

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        from torch.nn import functional as F

        if self.metric == "keys":
            directions = key_directions(tokens)
        else:
            directions = F.normalize(at_least_float32(tokens.x[:, tokens.num_prefix_tokens :]), dim=-1)
        return TokenPlan(keep_with_prefix(farthest_points(distances(directions), keep_patches), tokens))


def distances(directions: Tensor) -> Tensor:
    """Cosine distances between the rows of `[B, n, d]`, which have length 1: `[B, n, n]`."""
    with outside_autocast(directions):
        one_way = 1 - directions @ directions.transpose(1, 2)
    return one_way.minimum(one_way.transpose(1, 2))  # a matrix product need not be symmetric to the last bit


def farthest_points(distance: Tensor, count: int) -> Tensor:
    """Greedy max-min: `count` of n points, `[B, count]`, in the order in which they are chosen.

    Gonzalez, "Clustering to minimize the maximum intercluster distance", 1985: for a metric the smallest distance
    between two chosen is at least half of what the best choice can have. Cosine distance is half the square of a
    metric, the chord: a quarter.

    Args:
        distance: `[B, n, n]`, symmetric. The first point is the one that is furthest from its nearest neighbour;
            ties go to the lower index.
    """
    import torch

    itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
    chosen = [distance.masked_fill(itself, float("inf")).amin(dim=2).argmax(dim=1, keepdim=True)]
    nearest = torch.full_like(distance[:, 0], float("inf"))
    for _ in range(count - 1):
        last = chosen[-1]
        nearest = nearest.minimum(distance.gather(1, last.unsqueeze(2).expand(-1, 1, distance.shape[1])).squeeze(1))
        nearest = nearest.scatter(1, last, -1.0)
        chosen.append(nearest.argmax(dim=1, keepdim=True))
    return torch.cat(chosen, dim=1)
