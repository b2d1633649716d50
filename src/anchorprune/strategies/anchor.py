"""The described method: anchors by CLS attention, then importance and diversity (`select_tokens_by_pruning`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from anchorprune.errors import FieldError, UserError
from anchorprune.strategies.base import Strategy, cls_substitute_option, option
from anchorprune.tokens import (
    TokenPlan,
    Tokens,
    ascending,
    at_least_float32,
    attention_from,
    attention_received,
    attention_to,
    outside_autocast,
    top_indices,
)

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Anchor(Strategy):
    """Anchors by CLS attention, then the best by importance (attention to anchors) and diversity (as described)."""

    name: ClassVar[str] = "anchor"
    budget_fields: ClassVar = ("top_m",)
    layer_field: ClassVar = "prune_layer"

    prune_layer: int = option(2, "prune at the input of this block, counted from 1 (2 … number of blocks)")
    k_anchors: int = option(10, "number of anchor tokens")
    top_m: int = option(50, "number of tokens kept besides prefix and anchors")
    alpha: float = option(0.5, "weight of importance against diversity, 0 … 1; 1 is importance alone")
    selection: str = option(
        "per_image",
        "per_image, or first_image: the first image's choice for the whole batch, only to reproduce the original",
        ["per_image", "first_image"],
    )
    score_norm: str = option(
        "none", "none, or minmax: rescale importance and diversity to [0, 1] per image", ["none", "minmax"]
    )
    importance: str = option(
        "to_anchors",
        "to_anchors: attention that a token pays the anchors; from_anchors: that it gets from them",
        ["to_anchors", "from_anchors"],
    )
    cls_substitute: str = cls_substitute_option()
    score_input: str = option(
        "normed",
        "what the block's queries and keys are taken of: normed, its own LayerNorm of its input; raw, the input "
        "itself, only to reproduce the original",
        ["normed", "raw"],
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prune_layer < 2:
            raise FieldError("prune_layer", self.prune_layer, "must be 2 or more: block 1 always sees every token")
        if self.k_anchors < 1:
            raise FieldError("k_anchors", self.k_anchors, "must be 1 or more")
        if self.top_m < 0:
            raise FieldError("top_m", self.top_m, "must be 0 or more")
        if not 0 <= self.alpha <= 1:  # false for NaN too
            raise FieldError("alpha", self.alpha, "must lie between 0 (diversity alone) and 1 (importance alone)")

    @property
    def couples_batch(self) -> bool:
        return self.selection == "first_image"

    def schedule(self, num_patches: int, num_blocks: int) -> dict[int, int]:
        return {self.prune_layer: min(num_patches, self.k_anchors + self.top_m)}

    def budgets(self, num_patches: int, num_blocks: int) -> Sequence[Strategy]:
        return [dataclasses.replace(self, top_m=m) for m in range(max(0, num_patches - self.k_anchors), -1, -1)]

    def smaller_budget(self, num_patches: int, num_blocks: int) -> Strategy:
        # The share that the defaults keep of ViT-B/16 (60 of 196), with anchors and others as 1 : 5.
        keep = max(2, round(num_patches * 60 / 196))
        return dataclasses.replace(self, k_anchors=max(1, keep // 6), top_m=keep - max(1, keep // 6))

    def plan(self, tokens: Tokens, keep_patches: int) -> TokenPlan:
        if self.score_input == "raw":
            if (raw := tokens.raw_query_key()) is None:
                raise FieldError("score_input", "raw", "this tower projects LayerNorm's output alone; use normed")
            tokens = dataclasses.replace(tokens, query_key=lambda: raw)
        x, (q, k), received = tokens.x, tokens.query_key(), attention_received(tokens, self.cls_substitute)
        if self.selection == "first_image":
            x, q, k, received = x[:1], q[:1], k[:1], received[:1]
        top_m = keep_patches - self.k_anchors
        keep, anchors = _select(x, q, k, received, self.k_anchors, top_m, self.alpha, self.score_norm, self.importance)
        batch = tokens.x.shape[0]
        return TokenPlan(keep.expand(batch, -1), anchors.expand(batch, -1))


def select_tokens_by_pruning(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    *,
    k_anchors: int,
    top_m: int,
    alpha: float,
    num_prefix_tokens: int = 1,
    score_norm: str = "none",
    importance: str = "to_anchors",
) -> Tensor:
    """The four steps of the described method, for each image on its own.

    With A the mean over heads of softmax(q kᵀ / √d) over all N tokens, in float32:

    1. anchors: the `k_anchors` patch tokens with the largest A[cls, ·]; without a CLS token, those with the largest
       column mean of A, which is the attention that they get;
    2. importance I_i: mean of A[i, j] over the anchors j (`from_anchors`: of A[j, i]);
    3. diversity D_i = 1 − max over the anchors j of cos(x_i, x_j);
    4. score alpha · I + (1 − alpha) · D over the patch tokens that are no anchors; the `top_m` best are kept.

    Args:
        x: `[B, N, D]`, the block's input.
        q, k: `[B, H, N, d]`, the block's queries and keys of its own LayerNorm of x.
        k_anchors, top_m: at least 1 and 0; together at most the N − P patch tokens.
        alpha: 0 … 1.
        num_prefix_tokens: P; token 0 is CLS unless P is 0.
        score_norm: "minmax" rescales I and D to [0, 1] over each image's candidates first; "none" does not.
        importance: "to_anchors" or "from_anchors".

    Returns:
        LongTensor `[B, P + k_anchors + top_m]`, ascending; ties go to the lower index.

    Raises:
        UserError: a value outside its range, or a budget above the number of patch tokens.
    """
    fields = {"k_anchors": k_anchors, "top_m": top_m, "alpha": alpha}
    Anchor(**fields, score_norm=score_norm, importance=importance)  # type: ignore[arg-type]  # checks the values
    num_patches = x.shape[1] - num_prefix_tokens
    if k_anchors + top_m > num_patches:
        raise UserError(f"k_anchors={k_anchors} and top_m={top_m} ask for more than the {num_patches} patch tokens")
    tokens = Tokens(x, num_prefix_tokens, lambda: (q, k), has_cls=num_prefix_tokens > 0)
    return _select(x, q, k, attention_received(tokens), k_anchors, top_m, alpha, score_norm, importance)[0]


def _select(
    x: Tensor,
    q: Tensor,
    k: Tensor,
    received: Tensor,
    k_anchors: int,
    top_m: int,
    alpha: float,
    score_norm: str,
    importance: str,
) -> tuple[Tensor, Tensor]:
    """`select_tokens_by_pruning` without its checks: the kept tokens, ascending, and the anchors, best first.

    `received` is what the anchors are the largest of, `[B, n]`.
    """
    import torch

    num_prefix_tokens = x.shape[1] - received.shape[1]
    anchors = top_indices(received, k_anchors)  # [B, k], counted among the patches

    batch, tokens = x.shape[0], anchors + num_prefix_tokens
    if importance == "to_anchors":
        i = attention_to(q, k, tokens)
    else:
        i = attention_from(q.gather(2, tokens[:, None, :, None].expand(-1, q.shape[1], -1, q.shape[3])), k)
    i = i[:, num_prefix_tokens:]
    d = 1 - _closest_cosine(x[:, num_prefix_tokens:], anchors)

    if score_norm == "minmax":
        i, d = _minmax(i, anchors), _minmax(d, anchors)
    score = alpha * i + (1 - alpha) * d
    score = score.scatter(1, anchors, -float("inf"))  # an anchor is no candidate

    prefix = torch.arange(num_prefix_tokens, device=x.device).expand(batch, -1)
    selected = top_indices(score, top_m) + num_prefix_tokens
    return ascending(torch.cat([prefix, tokens, selected], dim=1)), tokens


def _closest_cosine(x: Tensor, anchors: Tensor) -> Tensor:
    """max over the anchors `[B, k]` of the cosine to each row of `x [B, n, D]`, as `[B, n]`."""
    with outside_autocast(x):
        x = at_least_float32(x)
        anchor_x = x.gather(1, anchors.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        square = (x * x).sum(dim=-1)  # [B, n]
        # Normalised after the product and by one root, so that a copy of an anchor has cosine 1, and equal tokens tie.
        norms = (square.unsqueeze(2) * square.gather(1, anchors).unsqueeze(1)).sqrt()
        cosine = x @ anchor_x.transpose(1, 2) / norms.clamp_min(1e-12)
        return cosine.amax(dim=2)


def _minmax(score: Tensor, anchors: Tensor) -> Tensor:
    """`score [B, n]` rescaled so that the candidates (all but the anchors) span [0, 1]; all 0 where they are equal."""
    low = score.scatter(1, anchors, float("inf")).amin(dim=1, keepdim=True)
    high = score.scatter(1, anchors, -float("inf")).amax(dim=1, keepdim=True)
    span = high - low
    return ((score - low) / span).masked_fill(span <= 0, 0.0)
