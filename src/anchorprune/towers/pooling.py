"""Pooling that counts tokens by their sizes, as pre-hooks and shadows that can be pickled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from anchorprune.tokens import at_least_float32
from anchorprune.towers.base import Gives


def weigh(x: Float[Tensor, "B n D"], sizes: Float[Tensor, "B n"]) -> Float[Tensor, "B n D"]:
    """Tokens x `[B, n, D]` scaled so that their plain mean is the mean weighted by sizes `[B, n]`, in x's dtype."""
    weights = sizes * (sizes.shape[1] / sizes.sum(dim=1, keepdim=True))
    return (at_least_float32(x) * weights.unsqueeze(-1)).to(x.dtype)


def add_to_logits(
    bias: Gives, keyword: str, shaped: Callable[[Tensor], Tensor], part: Any, args: tuple[Any, ...], kwargs: Any
) -> Any:
    """Pre-hook of a pooling head's attention: the sizes' addend by this keyword, in the dtype of the tokens."""
    if (addend := bias()) is None:
        return None
    x = kwargs.get("k_x", args[-1])  # the tokens that are attended to
    addend = shaped(addend[..., -x.shape[1] :].to(x.dtype))  # a head may leave out the prefix
    there = kwargs.get(keyword)
    return args, {**kwargs, keyword: addend if there is None else there + addend}


def for_each_key(addend: Float[Tensor, "B 1 1 N"]) -> Float[Tensor, "B N"]:
    """`[B, 1, 1, N]` as `[B, N]`, which is what nn.MultiheadAttention takes by `key_padding_mask`."""
    return addend[:, 0, 0]
