"""What pruning needs to know of an image tower, whoever's model it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from anchorprune.errors import UserError
from anchorprune.towers.masks import Mask, additive_mask, find_mask, gather_mask, with_mask

# The keywords of a block's call.
Call = Mapping[str, Any]
NO_CALL: Call = MappingProxyType({})

Grid = tuple[int, int]  # rows and columns of patches
Gives = Callable[[], Tensor | None]


def class_of(module: nn.Module) -> type[nn.Module]:
    """A module's class, beneath the classes that torch makes of it: by `nn.utils.parametrize`, by `fully_shard`."""
    cls = type(module)
    made = 1 if parametrize.is_parametrized(module) else 2 if is_sharded(module) else 0
    beneath: type[nn.Module] = cls.__mro__[made]
    return beneath


def is_sharded(module: nn.Module) -> bool:
    """Whether `torch.distributed.fsdp.fully_shard` has this module's parameters in its care."""
    return any(base.__name__ == "FSDPModule" for base in type(module).__mro__)


def kind_of(module: nn.Module) -> str:
    """The name of a module's class, as its library has it."""
    return class_of(module).__name__


def part_of(model: nn.Module, name: str) -> Any:
    """The submodule of that name, or the model itself: not what a wrapper such as peft's would look up further in."""
    return model._modules.get(name) or model


@dataclass
class Changes:
    """What is done to parts of a tower while it is pruned, and undone after.

    All functions can be pickled: of a module, methods, or partials of these.

    Attributes:
        attributes: part, name and value, set on the instance (`__dict__`) in front of what it has by that name.
        pre_hooks: part and function of `(part, args, kwargs)`, which gives both anew, or None.
        hooks: part and function of `(part, args, output)`, which gives the output anew, or None.
    """

    attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    pre_hooks: list[tuple[nn.Module, Callable[..., Any]]] = field(default_factory=list)
    hooks: list[tuple[nn.Module, Callable[..., Any]]] = field(default_factory=list)


@dataclass
class Tower(ABC):
    """One image tower; a subclass is one model library.

    Attributes:
        module: the tower; called on images `[B, 3, height, width]` it gives the features.
        blocks: its transformer blocks, in order; `blocks[0]` is block 1.
        batch_first: whether the blocks take `[B, N, D]`; otherwise they take `[N, B, D]`.
        num_prefix_tokens: P, tokens in front of the patches that are never dropped.
        grid: rows and columns of patches.
        image_size: height and width in pixels.
        reads_patches: whether the patches that come out of the last block are read; otherwise only the prefix is.
        has_cls: whether token 0 is a CLS token; P is then at least 1. Registers alone are none.
        where: the dotted name of the tower in the model that it was looked for in, where it had to be searched.
    """

    name: ClassVar[str]
    # The packages whose code the halves of a block stand in for.
    libraries: ClassVar[tuple[str, ...]] = ()

    module: nn.Module
    blocks: Sequence[nn.Module]
    batch_first: bool
    num_prefix_tokens: int
    grid: tuple[int, int]
    image_size: tuple[int, int]
    reads_patches: bool
    has_cls: bool = True
    where: str = ""

    @classmethod
    @abstractmethod
    def match(cls, model: nn.Module) -> Tower | None:
        """The tower of a model of this library; None for a model of another.

        Raises:
            UserError: a model of this library whose tower cannot be pruned; the sentence says why.
        """

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

    def grid_of(self, height: int, width: int, call: Call) -> Grid | None:
        """The grid of an image of this size in pixels; None where the tower refuses that size.

        Args:
            call: the keywords that the stem is called with.
        """
        return self.grid if (height, width) == self.image_size else None

    def on_grid(self, grids: Callable[[], tuple[Grid, Grid]]) -> Changes:
        """What lets the tower see images of another grid than its own. Only for towers that have a `stem`.

        Args:
            grids: gives, in a forward pass, the grid that its images have and the one that they had before they were
                shrunk.
        """
        return Changes()

    def pool_by_size(self, sizes: Gives, bias: Gives, weighted: bool) -> Changes:
        """What lets the pooling of patches count each token as often as tokens are merged in it.

        A mean over tokens becomes one weighted by size; a head that attends to tokens gets the addend that the blocks'
        attention gets. Where either gives None, the pooling is what it was, bit for bit.

        Args:
            sizes: gives, in a forward pass, `[B, N]` for the tokens that come out of the last block, or None.
            bias: gives the addend to the logits of these tokens, `[B, 1, 1, N]`, or None.
            weighted: whether it ever gives one.

        Raises:
            UserError: `weighted`, and the pooling head takes no addend.
        """
        return Changes()

    def with_features(self, output: Any, change: Callable[[Tensor], Tensor]) -> Any:
        """What the tower gave, with its features `[B, D]` changed."""
        if isinstance(output, tuple):  # the features, then the tokens
            return (change(output[0]), *output[1:])
        return change(output)

    def replaced(self, block: nn.Module) -> list[nn.Module]:
        """The modules of a block that the two halves stand in for, so that their own forward is not called.

        What a user put in their place or hooked to them is refused: pruning would pass it over.
        """
        return [block]

    def scored(self, block: nn.Module) -> list[nn.Module]:
        """The modules of a block that `query_key` calls."""
        return []

    def pool_query_key(
        self, patches: Float[Tensor, "B n D"]
    ) -> tuple[Float[Tensor, "B H M d"], Float[Tensor, "B H n d"]] | None:
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
    def query_key(
        self, block: nn.Module, x: Float[Tensor, "B N D"], call: Call = NO_CALL
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
        """The block's own queries and keys, each `[B, H, N, d]`, of its input x `[B, N, D]`.

        Scaled so that the block's attention is softmax(q kᵀ / √d); biases, q/k-norm and rotary embedding included.

        Args:
            call: the keywords that the block is called with, cut to these tokens (`cut`).
        """

    def raw_query_key(
        self, block: nn.Module, x: Float[Tensor, "B N D"], call: Call = NO_CALL
    ) -> tuple[Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]] | None:
        """As `query_key`, of x as it is, without the block's first LayerNorm; None where the tower cannot."""
        return None

    @abstractmethod
    def attention_half(
        self,
        block: nn.Module,
        x: Float[Tensor, "B N D"],
        bias: Float[Tensor, ...] | None,
        call: Call = NO_CALL,
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N d"], Float[Tensor, "B H N d"]]:
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

    def mask_bias(self, block: nn.Module, mask: Mask, x: Float[Tensor, "B N D"]) -> Float[Tensor, ...]:
        """An attention mask of a call for x `[B, N, D]`, as the addend to the logits that the block makes of it.

        Broadcasts to `[B, H, N, N]`. Where the mask is boolean, True means masked, as in `nn.MultiheadAttention`.
        """
        return additive_mask(mask, x.shape[0])

    def returned(self, block: nn.Module, x: Tensor) -> Any:
        """What the block returns for x, a block's output in its own layout; the block's caller takes it apart."""
        return x

    @abstractmethod
    def mlp_half(self, block: nn.Module, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """The block's second half: x + MLP(LayerNorm(x)), `[B, N, D]`."""
