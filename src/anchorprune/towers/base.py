"""What pruning needs to know of an image tower, whoever's model it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from anchorprune.errors import UserError
from anchorprune.masks import additive_mask, find_mask, gather_mask, with_mask

# The keywords of a block's call.
Call = Mapping[str, Any]
NO_CALL: Call = MappingProxyType({})


@dataclass
class LoadedModel:
    """A CLIP-like model, ready to evaluate.

    Attributes:
        model: has `encode_image` and `encode_text`; in evaluation mode, on its device.
        transform: PIL image -> `[3, height, width]`.
        tokenizer: list of texts -> LongTensor `[texts, length]`.
        options: how it was built, where that differs from its config; goes into the result.
    """

    model: Any
    transform: Callable[[Any], Tensor]
    tokenizer: Callable[[list[str]], Tensor]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Tower(ABC):
    """One image tower.

    Attributes:
        module: the tower; called on images `[B, 3, height, width]` it gives the features.
        blocks: its transformer blocks, in order; `blocks[0]` is block 1.
        batch_first: whether the blocks take `[B, N, D]`; otherwise they take `[N, B, D]`.
        num_prefix_tokens: P, tokens in front of the patches that are never dropped.
        grid: rows and columns of patches.
        image_size: height and width in pixels.
        reads_patches: whether the patches that come out of the last block are read; otherwise only the prefix is.
        has_cls: whether token 0 is a CLS token; P is then at least 1. Registers alone are none.
    """

    module: nn.Module
    blocks: Sequence[nn.Module]
    batch_first: bool
    num_prefix_tokens: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    reads_patches: bool
    has_cls: bool = True

    @property
    def num_patches(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def num_tokens(self) -> int:
        """N at the tower's own image size."""
        return self.num_prefix_tokens + self.num_patches

    @property
    def parts(self) -> list[nn.Module]:
        """The tower, and what it wraps: all that a user would ask for the features of images."""
        return [self.module]

    def tokens(self, x: Tensor) -> Tensor:
        """A block's input, or output, as `[B, N, D]`. Its own inverse."""
        return x if self.batch_first else x.transpose(0, 1)

    @property
    def stem(self) -> nn.Module:
        """The module that takes the pixels, `[B, 3, height, width]`, as its first argument and makes patches of them.

        Raises:
            UserError: a tower that sees images of one size alone.
        """
        raise UserError(
            f"{type(self.module).__name__} sees images of one size alone: choose a strategy that does not shrink them"
        )

    def on_grid(self, grid: tuple[int, int], whole: tuple[int, int]) -> list[tuple[nn.Module, str, Any]]:
        """What lets the tower see images of another grid than its own: attributes of its parts, and their values.

        Set on the instances (`__dict__`) while images of `grid` go through the tower, and deleted again. Only for
        towers that have a `stem`.

        Args:
            whole: the grid that these images had before they were shrunk; the tower's own, but where it takes any.
        """
        return []

    def pool_query_key(self, patches: Tensor) -> tuple[Tensor, Tensor] | None:
        """What the attention-pooling head would ask of patches that ended here; None where no head has a query.

        Args:
            patches: `[B, n, D]`, of the residual stream after any block.

        Returns:
            The head's own queries `[B, H, M, d]` and its keys of the patches `[B, H, n, d]`, scaled as in `query_key`.
        """
        return None

    @abstractmethod
    def num_heads(self, block: nn.Module) -> int:
        """H of a block."""

    @abstractmethod
    def query_key(self, block: nn.Module, x: Tensor, call: Call = NO_CALL) -> tuple[Tensor, Tensor]:
        """The block's own queries and keys, each `[B, H, N, d]`, of its input x `[B, N, D]`.

        Scaled so that the block's attention is softmax(q kᵀ / √d); biases, q/k-norm and rotary embedding included.

        Args:
            call: the keywords that the block is called with, cut to these tokens (`cut`).
        """

    @abstractmethod
    def attention_half(
        self, block: nn.Module, x: Tensor, bias: Tensor | None, call: Call = NO_CALL
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The block's first half: x + attention(LayerNorm(x)), with all that the block does there.

        Args:
            x: `[B, N, D]`.
            call: as in `query_key`.
            bias: added to the attention's logits; broadcasts to `[B, H, N, N]`. None: nothing.

        Returns:
            The residual stream between the halves, `[B, N, D]`, and the queries and keys as `query_key` gives them.
        """

    def cut(
        self, block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], kept: Callable[[], Tensor | None]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """A call of the block for all tokens, as it is for those that are left: an attention mask is cut to them.

        Args:
            kept: gives `[B, K]`, which of the image's tokens are left; None for all. Not called in vain.
        """
        mask = find_mask(block, args, kwargs)
        if mask is None or (left := kept()) is None or left.shape[1] == mask.shape[-1]:
            return args, kwargs
        return with_mask(block, args, kwargs, gather_mask(mask, left, self.num_heads(block)))

    def mask_bias(self, block: nn.Module, mask: Tensor, x: Tensor) -> Tensor:
        """An attention mask of a call for x `[B, N, D]`, as the addend to the logits that the block makes of it.

        Broadcasts to `[B, H, N, N]`. Where the mask is boolean, True means masked, as in `nn.MultiheadAttention`.
        """
        return additive_mask(mask, len(x))

    def returned(self, block: nn.Module, x: Tensor) -> Any:
        """What the block returns for x, a block's output in its own layout; the block's caller takes it apart."""
        return x

    @abstractmethod
    def mlp_half(self, block: nn.Module, x: Tensor) -> Tensor:
        """The block's second half: x + MLP(LayerNorm(x)), `[B, N, D]`."""
