"""What a strategy sees (`Tokens`), what it returns (`TokenPlan`), and the arithmetic that they share.

Nothing here imports torch when it is imported, so that the command line can read the strategies' fields and
answer `--help` at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The tokens at the input of one block.

    Attributes:
        x: `[B, N, D]`, the block's input, before the block's own LayerNorm.
        num_prefix_tokens: P, the leading tokens (CLS, registers) that are never dropped.
        query_key: gives the block's own queries and keys of x, each `[B, H, N, d]`; called only by strategies
            that need them, because it costs two projections.
    """

    x: Tensor
    num_prefix_tokens: int
    query_key: Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TokenPlan:
    """Which tokens go on.

    Attributes:
        keep: LongTensor `[B, K]`, indices into the N tokens, prefix included, unique and ascending.
        anchors: LongTensor `[B, k]`, the anchors among them, in no particular order; None where a strategy has none.
    """

    keep: Tensor
    anchors: Tensor | None = None


def mean_attention(q: Tensor, k: Tensor) -> Tensor:
    """A, the mean over heads of softmax(q kᵀ / √d).

    Args:
        q, k: `[B, H, N, d]`.

    Returns:
        `[B, N, N]`; row = the token that looks, column = the token looked at. float32 (float64 for float64 input).
    """
    heads, first = q.shape[1], head_attention(q[:, :1], k[:, :1])
    # Head by head: all heads at once would need H times the memory, more than the fused attention of a whole block.
    return sum((head_attention(q[:, h : h + 1], k[:, h : h + 1]) for h in range(1, heads)), first).squeeze(1) / heads


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


def top_indices(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` largest of `scores [B, n]`, best first; ties go to the lower index.

    `torch.topk` promises no order among equals, so this sorts.
    """
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count]


def gather_tokens(x: Tensor, keep: Tensor) -> Tensor:
    """Rows `keep [B, K]` of `x [B, N, D]`, as `[B, K, D]`."""
    return x.gather(1, keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or as it is when it is finer: scores in half precision would reorder close tokens."""
    return x if x.dtype.itemsize >= 4 else x.float()


def outside_autocast(x: Tensor) -> AbstractContextManager[None]:
    """A context in which autocast leaves matrix products in their own precision, on x's kind of device."""
    import torch

    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
