"""What a strategy sees (`Tokens`), what it returns (`TokenPlan`), and the arithmetic that they share.

Nothing here imports torch when it is imported, so that the command line can read the strategies' fields and
answer `--help` at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anchorprune.errors import FieldError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens where a strategy acts: at the input of a block, or between its attention and its MLP.

    Attributes:
        x: `[B, N, D]`, the residual stream there.
        num_prefix_tokens: P, the leading tokens (CLS, registers) that are never dropped.
        query_key: gives the block's own queries and keys, each `[B, H, N, d]`. At a block's input this costs two
            projections; after its attention they are there anyway.
        sizes: `[B, N]`, float32: how many of the image's own tokens each stands for; None where each is one.
        depth: the block's place among the tower's, 0 … 1: block ℓ of L has ℓ / L.
        has_cls: whether token 0 is a CLS token.
        pool_query_key: gives the queries `[B, H, M, d]` of the tower's attention-pooling head and its keys of the
            patches `[B, H, n, d]`; None where no head has a query.
        raw_query_key: gives what `query_key` gives, of x as it is, without the block's first LayerNorm; None where the
            tower cannot, and after the block's attention.
        num_blocks: L, the tower's blocks.
        pixel_variance: `[B, n]`, the variance of each patch's pixels, all colours together; None but for strategies
            that say they read pixels.
    """

    x: Tensor
    num_prefix_tokens: int
    query_key: Callable[[], tuple[Tensor, Tensor]]
    sizes: Tensor | None = None
    depth: float = 1.0
    has_cls: bool = True
    pool_query_key: Callable[[], tuple[Tensor, Tensor] | None] = lambda: None
    raw_query_key: Callable[[], tuple[Tensor, Tensor] | None] = lambda: None
    num_blocks: int = 1
    pixel_variance: Tensor | None = None

    @property
    def block(self) -> int:
        """ℓ, the block's number, counted from 1."""
        return round(self.depth * self.num_blocks)


@dataclass(frozen=True)
class TokenPlan:
    """Which tokens go on.

    Attributes:
        keep: LongTensor `[B, K]`, indices into the N tokens, prefix included, unique and ascending.
        anchors: LongTensor `[B, k]`, the anchors among them, in no particular order; None where a strategy has none.
        merged: LongTensor `[B, M]`, tokens that are not kept and go into one that is; None where nothing is merged.
            A token that is neither kept nor merged is dropped.
        into: LongTensor `[B, M]`, the kept token that each of them goes into, as an index into the N tokens.
        weights: `[B, N]`, what each token weighs in the average of those that come together; None: its size.
        averaged: whether those that come together are averaged; otherwise they are summed, each times its weight.
        shares: `[B, K, N]`, what share of each token goes into each kept one, where one may go into several: columns
            add up to 1, and those of kept tokens are 1 in their own row. Averages are weighted by share times size,
            and `into` says which got most. None: all of it goes there.
        at_length: whether such an average is then given the length of the longest token in it (MLERP).
        sizes: `[B, K]`, how many of the image's own tokens each kept one stands for from here on; None: what is
            merged in it.
    """

    keep: Tensor
    anchors: Tensor | None = None
    merged: Tensor | None = None
    into: Tensor | None = None
    weights: Tensor | None = None
    sizes: Tensor | None = None
    averaged: bool = True
    at_length: bool = False
    shares: Tensor | None = None


def head_attention(q: Tensor, k: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √d + mask) of each head, `[B, H, N, N]`, in float32 (float64 for float64 input).

    Args:
        q, k: `[B, H, N, d]`.
        mask: additive, broadcastable to `[B, H, N, N]`, or None.
    """
    with outside_autocast(q):
        logits = (at_least_float32(q) * q.shape[-1] ** -0.5) @ at_least_float32(k).transpose(-2, -1)
        if mask is not None:
            logits = logits + mask
        return logits.softmax(dim=-1)


def cls_attention(q: Tensor, k: Tensor) -> Tensor:
    """The attention that token 0 pays each token, mean over heads, `[B, N]`."""
    return attention_from(q[:, :, :1], k)


def attention_received(tokens: Tokens, substitute: str = "received") -> Tensor:
    """What says how much each patch matters, `[B, n]`: the attention that CLS pays it.

    Without a CLS token the attention that it gets from all tokens, on average, or with `substitute` "pool_query" from
    the query of the head that pools the patches at the tower's end.

    Raises:
        FieldError: "pool_query" in a tower that has neither CLS nor such a head.
    """
    if not tokens.has_cls and substitute == "pool_query":
        if (pool := tokens.pool_query_key()) is None:
            raise FieldError("cls_substitute", substitute, "this tower's pooling has no query; use received")
        return attention_from(*pool)
    q, k = tokens.query_key()
    received = cls_attention(q, k) if tokens.has_cls else attention_from(q, k)
    return received[:, tokens.num_prefix_tokens :]


def attention_from(q: Tensor, k: Tensor) -> Tensor:
    """The attention that each token gets from a few, mean over heads and over these, `[B, N]`.

    Args:
        q: `[B, H, M, d]`, the queries of the few.
        k: `[B, H, N, d]`, the keys of all.
    """
    # Each sum along memory: those of equal tokens then are equal to the last bit.
    return head_attention(q, k).permute(0, 3, 1, 2).flatten(2).contiguous().mean(dim=2)


def attention_to(q: Tensor, k: Tensor, few: Tensor) -> Tensor:
    """The attention that each token pays a few, mean over heads and over these, `[B, N]`; float32 or finer.

    Args:
        q, k: `[B, H, N, d]`.
        few: `[B, M]`, indices into the N tokens.
    """
    import torch

    with outside_autocast(q):
        few = few.unsqueeze(1).expand(-1, q.shape[2], -1)
        paid = []
        # Of a head's N × N logits, one head at a time, only the sums of the rows and the columns of the few are needed.
        for h in range(q.shape[1]):
            logits = (at_least_float32(q[:, h]) * q.shape[-1] ** -0.5) @ at_least_float32(k[:, h]).transpose(1, 2)
            paid.append((logits.gather(2, few) - logits.logsumexp(dim=2, keepdim=True)).exp().mean(dim=2))
        return torch.stack(paid, dim=2).mean(dim=2)


def key_directions(tokens: Tokens) -> Tensor:
    """The patches' keys, mean over heads, scaled to length 1: `[B, n, d]`, float32 or finer."""
    from torch.nn import functional as F

    keys = at_least_float32(tokens.query_key()[1][:, :, tokens.num_prefix_tokens :]).mean(dim=1)
    return F.normalize(keys, dim=-1)


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of `scores [B, n]`, best first; ties go to the lower index.

    `torch.topk` promises no order among equals, so this sorts.
    """
    if exporting():  # runtimes have no stable sort; which of equals goes first is theirs to say
        return scores.topk(count, dim=-1).indices
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def all_but(indices: Tensor, n: int) -> Tensor:
    """The numbers below n that are not in `indices [B, M]`, ascending, `[B, n − M]`."""
    if exporting():
        import torch

        numbers = torch.arange(n, device=indices.device)
        there = (indices.unsqueeze(2) == numbers).any(dim=1)  # [B, n]
        return ascending(numbers + n * there.long())[:, : n - indices.shape[1]]
    there = indices.new_zeros(indices.shape[0], n).scatter(1, indices, 1)
    return there.sort(dim=1, stable=True).indices[:, : n - indices.shape[1]]


def ascending(indices: Tensor) -> Tensor:
    """Numbers `[B, n]`, in each row unique, in ascending order."""
    if exporting():
        return indices.topk(indices.shape[1], dim=1, largest=False).values
    return indices.sort(dim=1).values


def keep_with_prefix(patches: Tensor, tokens: Tokens) -> Tensor:
    """`TokenPlan.keep` for these patches `[B, n]`, counted among the patches, unique, in any order."""
    import torch

    prefix = torch.arange(tokens.num_prefix_tokens, device=patches.device).expand(patches.shape[0], -1)
    return torch.cat([prefix, ascending(patches) + tokens.num_prefix_tokens], dim=1)


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Rows `keep [B, K]` of `x [B, N, D]`, as `[B, K, D]`."""
    return x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def positions(keep: Tensor, num_tokens: int) -> Tensor:
    """Where each of the N tokens stands among the kept, `[B, N]`; −1 for those that are not kept."""
    import torch

    where = keep.new_full((keep.shape[0], num_tokens), -1)
    return where.scatter(1, keep, torch.arange(keep.shape[1], device=keep.device).expand_as(keep))


def merge_tokens(x: Tensor, sizes: Tensor | None, plan: TokenPlan) -> tuple[Tensor, Tensor | None]:
    """The tokens that go on and their sizes: the kept ones, each averaged with what the plan merges into it.

    The average is weighted by `plan.weights`, or by the sizes, or by the shares of them that go there: then Σ size · x
    over all tokens stays what it was. Where the plan says so it is a sum with these weights instead, of each kept
    token, whether anything goes into it or not; or an average that is as long as the longest that went into it, which
    conserves lengths and not that sum.

    Args:
        x: `[B, N, D]`.
        sizes: `[B, N]`, or None where each token is one.

    Returns:
        `[B, K, D]` in x's dtype, averaged in float32 or finer; and `[B, K]`, None where nothing was ever merged.
    """
    if plan.merged is None or plan.into is None:
        left = None if sizes is None else sizes.gather(1, plan.keep)
        return gather_tokens(x, plan.keep), left if plan.sizes is None else plan.sizes
    if plan.shares is not None:
        return _shared_out(x, sizes, plan.shares)
    batch, n = x.shape[:2]
    into = positions(plan.keep, n).gather(1, plan.into)  # [B, M], places among the kept

    def summed(values: Tensor) -> Tensor:
        kept, added = values.gather(1, plan.keep), values.gather(1, plan.merged)  # type: ignore[arg-type]
        return _add_into(kept.unsqueeze(2), into, added.unsqueeze(2)).squeeze(2)

    sizes = at_least_float32(x).new_ones(batch, n) if sizes is None else sizes
    weights = sizes if plan.weights is None else at_least_float32(plan.weights)
    kept = at_least_float32(gather_tokens(x, plan.keep)) * weights.gather(1, plan.keep).unsqueeze(-1)
    added = at_least_float32(gather_tokens(x, plan.merged)) * weights.gather(1, plan.merged).unsqueeze(-1)
    total = _add_into(kept, into, added)
    mean = total / summed(weights).unsqueeze(-1) if plan.averaged else total
    if plan.at_length:
        mean = mean * _lengthened(mean, at_least_float32(x).norm(dim=2), plan, into).unsqueeze(-1)
    return mean.to(x.dtype), summed(sizes)


def _shared_out(x: Tensor, sizes: Tensor | None, shares: Tensor) -> tuple[Tensor, Tensor]:
    """What `merge_tokens` returns where each token goes into several, by `shares [B, K, N]`."""
    weights = shares if sizes is None else shares * sizes.unsqueeze(1)
    after = weights.sum(dim=2)
    with outside_autocast(x):
        total = weights @ at_least_float32(x).to(weights.dtype)
    return (total / after.unsqueeze(2)).to(x.dtype), after


def _lengthened(mean: Tensor, lengths: Tensor, plan: TokenPlan, into: Tensor) -> Tensor:
    """By how much each average `[B, K, D]` is shorter than the longest in it, `[B, K]`; 1 where nothing goes in.

    Args:
        lengths: `[B, N]`, of the tokens before.
        into: `[B, M]`, the place among the kept of what each merged one goes into.
    """
    import torch

    here = torch.arange(mean.shape[1], device=into.device).unsqueeze(1) == into.unsqueeze(1)  # [B, K, M]
    merged = torch.where(here, lengths.gather(1, plan.merged).unsqueeze(1), 0.0)  # type: ignore[arg-type]
    longest = lengths.gather(1, plan.keep).maximum(merged.amax(dim=2))
    return torch.where(here.any(dim=2), longest / mean.norm(dim=2).clamp_min(1e-12), 1.0)


def _add_into(kept: Tensor, into: Tensor, added: Tensor) -> Tensor:
    """`kept [B, K, D]`, with each row of `added [B, M, D]` added to its row `into [B, M]`."""
    import torch

    if exporting():  # a scatter that adds is refused or wrong in many runtimes; a product with zeros and ones is not
        rows = torch.arange(kept.shape[1], device=kept.device)
        return kept + (rows.unsqueeze(1) == into.unsqueeze(1)).to(added.dtype) @ added
    return kept.scatter_add(1, into.unsqueeze(-1).expand(-1, -1, kept.shape[2]), added)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is when it is finer: scores in half precision would reorder close tokens."""
    return x if x.dtype.itemsize >= 4 else x.float()


def outside_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which autocast leaves matrix products in their own precision, on x's kind of device."""
    import torch

    kind = x.device.type
    # By name: before 2.12 torch.compile cannot trace torch.amp.is_autocast_available. An export has no autocast.
    return nullcontext() if kind == "meta" or exporting() else torch.autocast(kind, enabled=False)


def exporting() -> bool:
    """Whether torch.export traces this: what runtimes lack is then done by what they have, to the same result."""
    import torch

    asked = getattr(torch.compiler, "is_exporting", None)  # of 2.7
    return asked is not None and bool(asked())
