"""`prune`: put a strategy into a model, see what it keeps, and take it out again without a trace."""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from anchorprune.errors import FieldError, FieldWarning, UserError
from anchorprune.pruning.hooks import Hooks
from anchorprune.pruning.passes import Passes
from anchorprune.pruning.preprocessing import resized_straight
from anchorprune.pruning.record import Record
from anchorprune.strategies import RECOMMENDED, make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.strategies.cascade import Cascade
from anchorprune.towers import Tower, find_tower

if TYPE_CHECKING:
    from anchorprune.pruning.cascade import Stages

# The handle's name in the `__dict__` of a pruned tower's first block, which is the same however one came to the tower.
_HANDLE = "anchorprune_handle"
# Held while hooks go in or out, by whatever thread enters or leaves a `with` block.
_LOCK = threading.RLock()


def prune(
    model: nn.Module,
    strategy: str | Strategy = RECOMMENDED,
    *,
    target_gmacs: float | None = None,
    small_images: bool = False,
    **fields: Any,
) -> Pruning:
    """Prune the image tower of `model` from now on, in place, until `restore()`.

    Args:
        model: a CLIP-like model, its image tower, either one compiled, or a module around one of these, such as
            `DistributedDataParallel` or a `PeftModel`.
        strategy: a strategy's name (its `fields` follow) or a strategy object; `RECOMMENDED` when there is none.
        target_gmacs: instead of a budget: the largest one under which the image tower takes no more than so many
            billions of multiply-adds for one image, selection included.
        small_images: images come in the handle's `image_size` already, as its `transform` makes them: a strategy with a
            coarser grid (`coarse`) then shrinks nothing. Any other size is refused, the tower's own too.
        fields: the strategy's fields, such as `k_anchors=10`.

    Returns:
        A handle that restores the model when called, when `restore()` is called and at the end of a `with` block,
        and that holds what the last forward pass kept. Entering a `with` block on it later prunes the model again.

    Raises:
        UserError: the model cannot be pruned or is pruned already, a field has an impossible value, or something that
            was put into the model's blocks would be passed over.

    Drops what torch.compile has compiled in this process, which would not notice; it is compiled again when called.
    A `Cascade` runs several copies of the model (`pruning/cascade.py`); its handle has `bank` and `shares`, too.
    In training keep the model pruned until after `backward()`: gradient checkpointing runs the blocks again.

    Warns:
        UserWarning: the budget covers all tokens of this tower, so nothing will be dropped.
    """
    if isinstance(strategy, str):
        given: Any = fields
        strategy = make_strategy(strategy, **fields)
    elif fields:
        raise UserError(f"give fields ({', '.join(fields)}) with a strategy's name, not with a strategy object")
    else:
        given = strategy.changed()
    if target_gmacs is not None:
        from anchorprune.pruning.budget import solve  # which prunes

        if both := [name for name in strategy.budget_fields if name in given]:
            fix = f"give it or {both[0]}, not both"
            raise FieldError("target_gmacs", target_gmacs, fix, typed=f"give it or --{both[0]}, not both")
        strategy = solve(model, strategy, target_gmacs)
    if isinstance(strategy, Cascade):
        from anchorprune.pruning.cascade import Cascading  # which prunes

        return Cascading(model, strategy)
    return Pruning(find_tower(model), strategy, small_images)


def apply_pruning_to_model(
    model: nn.Module,
    enable_pruning: bool = True,
    k_anchors: int = 10,
    top_m: int = 50,
    alpha: float = 0.5,
    *,
    prune_layer: int = 2,
    selection: str = "per_image",
    score_norm: str = "none",
    importance: str = "to_anchors",
    score_input: str = "normed",
    verbose: bool = False,
) -> Pruning:
    """`prune(model, "anchor", …)` under the description's name.

    With `enable_pruning=False` the model is left alone and the handle's `restore()` does nothing. `verbose` prints one
    line: what is pruned from now on, and how many tokens go on from which block.
    """
    strategy = make_strategy(
        "anchor",
        k_anchors=k_anchors,
        top_m=top_m,
        alpha=alpha,
        prune_layer=prune_layer,
        selection=selection,
        score_norm=score_norm,
        importance=importance,
        score_input=score_input,
    )
    tower = find_tower(model) if enable_pruning else None
    pruning = Pruning(tower, strategy)
    if verbose:
        print(_said(tower, strategy))
    return pruning


def _said(tower: Tower | None, strategy: Strategy) -> str:
    """What `verbose` prints."""
    if tower is None:
        return "anchorprune: pruning is off"
    [(layer, patches)] = strategy.schedule(tower.num_patches, len(tower.blocks)).items()
    kept = f"{tower.num_prefix_tokens + patches} of {tower.num_tokens} tokens from block {layer} on"
    return f"anchorprune: {type(tower.module).__name__} with {len(tower.blocks)} blocks keeps {kept} ({strategy})"


class Pruning:
    """A pruned model's handle: what the last forward pass did, and the way back.

    Threads may share a pruned model: what the handle says of the last forward pass is that of the thread which asks.
    `with` blocks on it count: at the end of the outermost one the model is restored. Copies and pickles of a pruned
    model are pruned too, and have a handle of their own (`anchorprune.restore(copy)`).

    Attributes:
        strategy: the strategy in force.
        where: the dotted name of the tower in the model, where it had to be searched in a module around it.
    """

    def __init__(self, tower: Tower | None, strategy: Strategy, small_images: bool = False) -> None:
        self.strategy = strategy
        self.where = tower.where if tower else ""
        self._passes = Passes()
        self._depth = 0
        self._tower: Any = tower
        self._hooks: Hooks | Stages | None = None
        if tower is None:  # pruning is switched off
            return

        check_layers(tower, strategy)
        strategy.check_fits(tower.module)
        self._hooks = Hooks(tower, strategy, self._passes, small_images)
        if not self._hooks.drops:
            smaller = strategy.smaller_budget(tower.num_patches, len(tower.blocks))
            fields = smaller.apart_from(strategy)
            text = (
                f"{strategy.name} keeps all {tower.num_tokens} tokens of this tower ({tower.num_prefix_tokens} "
                f"prefix + {tower.num_patches} patches): nothing is dropped; "
            )
            warnings.warn(
                FieldWarning(
                    f"{text}{smaller.spelled(fields)} would prune", f"{text}{smaller.flags(fields)} would prune"
                ),
                stacklevel=3,
            )
        self._install()

    def _install(self) -> None:
        assert self._hooks is not None
        if (earlier := active_pruning(self._tower)) is not None:
            raise UserError(
                f"this model is already pruned ({earlier.strategy}): call restore() on the handle that prune() "
                "returned, or anchorprune.restore(model), before pruning it again"
            )
        self._hooks.install()
        try:
            self._tower.blocks[0].__dict__[_HANDLE] = self
            forget_compiled_code()
        except BaseException:  # nobody has a handle by which to take it away again
            self._hooks.remove()
            self._tower.blocks[0].__dict__.pop(_HANDLE, None)
            raise

    def restore(self) -> None:
        """Make the model what it was. Calling it again does nothing."""
        with _LOCK:
            if self._hooks is None or not self._hooks.installed:
                return
            self._hooks.remove()
            self._tower.blocks[0].__dict__.pop(_HANDLE, None)
            forget_compiled_code()

    __call__ = restore

    def __enter__(self) -> Pruning:
        with _LOCK:
            if self._hooks is not None and not self._hooks.installed:
                self._install()
            self._depth += 1
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with _LOCK:
            self._depth -= 1
            if self._depth == 0:
                self.restore()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_depth": 0}  # nobody is in a `with` block of the copy

    def __repr__(self) -> str:
        state = "active" if self._hooks is not None and self._hooks.installed else "restored"
        where = f", tower {self.where}" if self.where else ""
        return f"Pruning({self.strategy}, {state}{where}, tokens {self.tokens_before} -> {self.tokens_after})"

    @property
    def record(self) -> Record:
        """What the last forward pass of this thread did, block by block."""
        return self._passes.current

    @record.setter
    def record(self, record: Record) -> None:
        self._passes.set(record)

    @property
    def kept(self) -> Tensor | None:
        """LongTensor `[B, K]`, indices of the tokens that reach the tower's end, prefix included, ascending.

        Of tokens that were merged, the one that the others went into. All N of them where nothing was dropped. None
        before the first forward pass. Under CUDA graphs (`mode="reduce-overhead"`) clone it before the next forward
        pass, which overwrites it.
        """
        return self.kept_before(None)

    @property
    def assignment(self) -> Tensor | None:
        """LongTensor `[B, N]`: the place among `kept` where each of the image's own tokens ended; −1 for dropped.

        None before the first forward pass.
        """
        return self.record.assignment()

    @property
    def tokens_before(self) -> int | None:
        """N; None before the first forward pass."""
        entered = self.record.entered
        return None if entered is None else entered[1]

    @property
    def tokens_after(self) -> int | None:
        """K, the tokens that reach the tower's end; None before the first forward pass."""
        counts = self.tokens_by_block
        return counts[-1] if counts else None

    @property
    def tokens_by_block(self) -> list[int] | None:
        """How many tokens each block's MLP sees; None before the first forward pass."""
        return None if self._tower is None else self.record.tokens_by_block(len(self._tower.blocks))

    @property
    def effective(self) -> bool:
        """Whether this budget drops tokens: in the last forward pass, or before one, at the tower's own image size."""
        return self._hooks is not None and self._hooks.dropped()

    @property
    def shares(self) -> list[float] | None:
        """Of a cascade: the share of the images that each stage has encoded; None before the first image."""
        return None

    @property
    def flops(self) -> int | None:
        """Of a cascade: what an image costs on average (2 per multiply-add); None where counting the tower tells."""
        return None

    def kept_before(self, block: int | None) -> Tensor | None:
        """`kept` as it was for the tokens that entered this block, counted from 1; None: for those that came out."""
        return self.record.kept_before(block)

    def size_bias(self, block: int) -> Tensor | None:
        """What this block's logits gain by the sizes of its tokens, `[B, 1, 1, N]`; None where they gain nothing."""
        return None if self._hooks is None else self._hooks.size_bias(block)

    def off_the_record(self) -> AbstractContextManager[None]:
        """Forward passes of this thread within leave no trace on the handle."""
        return self._passes.off_the_record()

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width in pixels that the tower's first layer sees; None where pruning is switched off.

        Smaller than the tower's own where the strategy has a coarser grid: with `small_images` images come like that.
        """
        return None if self._hooks is None else self._hooks.image_size

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model takes now."""
        small = self._hooks is not None and self._hooks.small_images
        size: tuple[int, int] = self._hooks.image_size if self._hooks and small else self._tower.image_size
        return size

    def transform(self, preprocess: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        """The model's own preprocessing, resizing straight to `image_size` instead of to the tower's own size.

        The same region of the image in the same geometry, resampled once instead of twice. For a model that was pruned
        with `small_images`; itself where the strategy has no coarser grid.

        Args:
            preprocess: PIL image -> `[3, height, width]` at the tower's own size: of torchvision's or timm's steps, or
                what anchorprune loads a model with.

        Raises:
            UserError: the images would be refused, because the model was pruned without `small_images`; or steps whose
                resizing cannot be told apart.
        """
        if self._hooks is not None and self._hooks.image_size == self._tower.image_size:
            return preprocess
        if self._hooks is None or not self._hooks.small_images:
            raise UserError(
                "transform: this pruning shrinks images itself; prune with small_images=True to do it before"
            )
        return resized_straight(preprocess, self._tower.image_size, self._hooks.image_size)

    @property
    def first_block(self) -> int:
        """The first block, counted from 1, that the strategy acts in; the tower's last where it acts in none.

        0 where the image itself gets a coarser grid or is looked at, and where pruning is switched off.
        """
        return 0 if self._hooks is None else self._hooks.first


def check_layers(tower: Tower, strategy: Strategy) -> None:
    """Raise FieldError for a strategy that acts in a block that the tower does not have."""
    blocks = len(tower.blocks)
    for each in strategy.parts:
        if (last := max(each.schedule(tower.num_patches, blocks), default=0)) > blocks:
            fix = f"this tower has blocks 1 … {blocks}"
            if each.layer_field:
                raise FieldError(each.layer_field, last, f"{fix}; choose one of them")
            raise UserError(f"{each.name} acts in block {last}: {fix}")


def restore(model: nn.Module) -> None:
    """Make `model` what it was before it was pruned, without the handle: a deep copy's, say. No-op if unpruned."""
    pruning = active_pruning(find_tower(model))
    if pruning is not None:
        pruning.restore()


def active_pruning(tower: Tower) -> Pruning | None:
    """The handle of the pruning that is in force on this tower; a deep copy of a pruned model has its own."""
    return tower.blocks[0].__dict__.get(_HANDLE)


def forget_compiled_code() -> None:
    """Make torch.compile look at the hooks again, in the whole process.

    Compiled code does not check for hooks that came or went after it was compiled: it would run the model
    unpruned, or pruned after `restore()`. Dropping the compiled code costs one compilation at the next call.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
