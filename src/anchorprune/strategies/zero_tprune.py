"""Zero-TPrune: PageRank on the attention graph, after patches that have a more important twin have gone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.errors import FieldError
from anchorprune.strategies.base import StepwiseStrategy, option
from anchorprune.tokens import (
    TokenPlan,
    Tokens,
    all_but,
    ascending,
    gather_tokens,
    head_attention,
    keep_with_prefix,
    key_directions,
    outside_autocast,
    top_indices,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ZeroTPrune(StepwiseStrategy):
    """The patches that PageRank on the attention graph ranks first, once near copies have gone (Zero-TPrune).

    Wang et al., "Zero-TPrune: Zero-Shot Token Pruning through Leveraging of the Attention Graph in Pre-Trained
    Transformers", CVPR 2024. A token votes for the tokens that it attends to, with the weight of its own score; CLS
    starts with √N times the score of the others. Heads come together by root mean square, without those whose scores
    are too even or too peaked. In each block one round of votes halves the patches by importance; of the less
    important half those go that are most like one of the other half, by the cosine of their keys; of what is left,
    more rounds rank which stay. Nothing is merged. In which blocks it acts, how the budget spreads over them and
    `similar_share` are ours. docs/compatibility.md says what else is.
    """

    name: ClassVar[str] = "zero_tprune"
    acts: ClassVar = "inside"

    prune_layers: tuple[int, ...] = option((3, 6, 9), "act in these blocks, counted from 1, ascending", kind=int)
    similar_share: float = option(
        0.3,
        "share of the patches that a block drops that go for being like a more important one, 0 (none) … 1; the "
        "others go for their rank",
    )
    rank_rounds: tuple[int, ...] = option(
        (30, 5, 1), "rounds of votes in the tower's first quarter, its middle and its last quarter", kind=int
    )
    min_head_variance: float = option(0.01, "a head whose scores, their mean 1, vary less has no say")
    max_head_variance: float = option(
        0.7, "a head whose scores vary more has no say either; where none is left, all have"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.similar_share <= 1:  # false for NaN too
            raise FieldError("similar_share", self.similar_share, "must lie between 0 and 1")
        if len(self.rank_rounds) != 3:
            raise FieldError("rank_rounds", self.rank_rounds, "give three numbers: early, middle and late")
        if min(self.rank_rounds) < 1:
            raise FieldError("rank_rounds", self.rank_rounds, "must be 1 or more")
        if not self.min_head_variance >= 0:
            raise FieldError("min_head_variance", self.min_head_variance, "must be 0 or more")
        if not self.max_head_variance >= self.min_head_variance:
            raise FieldError("max_head_variance", self.max_head_variance, "must not be below min_head_variance")

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        prefix, cls = tokens.num_prefix_tokens, tokens.has_cls
        n = tokens.x.shape[1] - prefix
        graph = head_attention(*tokens.query_key())
        similar = min(round(self.similar_share * (n - keep_patches)), n // 2)
        left = all_but(_copies(self._importance(graph, 1, prefix, cls), key_directions(tokens), similar), n)
        if n - similar > keep_patches:
            early, middle, late = self.rank_rounds
            rounds = early if tokens.depth <= 0.25 else late if tokens.depth > 0.75 else middle
            ranked = self._importance(_among(graph, keep_with_prefix(left, tokens)), rounds, prefix, cls)
            left = left.gather(1, top_indices(ranked, keep_patches))
        return TokenPlan(keep_with_prefix(left, tokens))

    def _importance(self, graph: Tensor, rounds: int, prefix: int, cls: bool) -> Tensor:
        """The patches' importance after so many rounds of votes in each head's graph `[B, H, N, N]`: `[B, n]`."""
        scores = page_rank(graph, rounds, cls)[:, :, prefix:]
        scores = scores / scores.mean(dim=2, keepdim=True)
        variance = (scores - scores.mean(dim=2, keepdim=True)).square().mean(dim=2)  # Tensor.var warns of no images
        says = (variance >= self.min_head_variance) & (variance <= self.max_head_variance)  # [B, H]
        says = (says | ~says.any(dim=1, keepdim=True)).to(scores.dtype).unsqueeze(2)
        return ((scores.square() * says).sum(dim=1) / says.sum(dim=1)).sqrt()


def page_rank(graph: Tensor, rounds: int, cls: bool) -> Tensor:
    """Scores after so many rounds in which each token hands its own on to those that it attends to: `[B, H, N]`.

    Algorithm 1 of the paper, "weighted PageRank": s ← Aᵀ s. The scores of a head add up to N throughout.

    Args:
        graph: A `[B, H, N, N]`, rows that add up to 1.
        cls: whether token 0 starts with √N times the score of the others.
    """
    import torch

    n = graph.shape[2]
    scores = graph.new_ones(n)
    if cls:
        scores = torch.cat([scores[:1] * n**0.5, scores[1:]])
    scores = (scores * (n / scores.sum())).expand(*graph.shape[:2], 1, n)
    with outside_autocast(graph):
        for _ in range(rounds):
            scores = scores @ graph
    return scores.squeeze(2)


def _copies(importance: Tensor, directions: Tensor, count: int) -> Tensor:
    """Of the less important half of the patches the `count` most like one of the other half, `[B, count]`.

    Args:
        importance: `[B, n]`.
        directions: `[B, n, d]`, of length 1.
    """
    n = importance.shape[1]
    order = top_indices(importance, n)
    half = ascending(order[:, n - n // 2 :])
    with outside_autocast(directions):
        alike = gather_tokens(directions, half) @ gather_tokens(directions, order[:, : n - n // 2]).transpose(1, 2)
    return half.gather(1, top_indices(alike.amax(dim=2), count))


def _among(graph: Tensor, kept: Tensor) -> Tensor:
    """The graph `[B, H, N, N]` among these tokens `[B, K]`; what each gives to the others adds up to 1 again."""
    rows = kept[:, None, :, None].expand(-1, graph.shape[1], -1, graph.shape[3])
    columns = kept[:, None, None, :].expand(-1, graph.shape[1], kept.shape[1], -1)
    part = graph.gather(2, rows).gather(3, columns)
    return part / part.sum(dim=3, keepdim=True)
