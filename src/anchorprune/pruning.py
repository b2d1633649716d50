"""`prune`: put a strategy into a model, record what it keeps, and take it out again without a trace.

A strategy that acts at a block's input needs a forward pre-hook that gathers the tokens, and no more. One that acts
inside a block, between attention and MLP, has that block's forward shadowed on the instance by the tower's two
halves. Blocks in which nothing happens run their own code, fused attention included. No class is replaced and no
parameter is touched, so that removing hooks and shadows restores the model exactly.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from itertools import product
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from anchorprune.errors import FieldError, UserError
from anchorprune.grid import as_plan, coarser, shrink
from anchorprune.masks import find_mask
from anchorprune.record import Record
from anchorprune.strategies import RECOMMENDED, make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.tokens import TokenPlan, Tokens, merge_tokens
from anchorprune.towers import Tower, find_tower

# The handle's name in the `__dict__` of a pruned tower's first block, which is the same however one came to the tower.
_HANDLE = "anchorprune_handle"
_REPLICA = "a pruned model cannot run under nn.DataParallel; use DistributedDataParallel"
# Where an instance had no such attribute.
_NOTHING = "anchorprune: nothing"
# Methods of towers that would lay the kept tokens out as the whole grid.
_WHOLE_GRID = ("forward_intermediates", "get_intermediate_layers")


def prune(model: nn.Module, strategy: str | Strategy = RECOMMENDED, **fields: Any) -> Pruning:
    """Prune the image tower of `model` from now on, in place, until `restore()`.

    Args:
        model: an open_clip model, its image tower (`model.visual`), or either one compiled.
        strategy: a strategy's name (its `fields` follow) or a strategy object; `RECOMMENDED` when there is none.
        fields: the strategy's fields, such as `k_anchors=10`.

    Returns:
        A handle that restores the model when called, when `restore()` is called and at the end of a `with` block,
        and that holds what the last forward pass kept. Entering a `with` block on it later prunes the model again.

    Raises:
        UserError: the model cannot be pruned or is pruned already, or a field has an impossible value.

    Drops what torch.compile has compiled in this process, which would not notice; it is compiled again when called.
    In training keep the model pruned until after `backward()`: gradient checkpointing runs the blocks again.

    Warns:
        UserWarning: the budget covers all tokens of this tower, so nothing will be dropped.
    """
    if isinstance(strategy, str):
        strategy = make_strategy(strategy, **fields)
    elif fields:
        raise UserError(f"give fields ({', '.join(fields)}) with a strategy's name, not with a strategy object")
    return Pruning(find_tower(model), strategy)


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
) -> Pruning:
    """`prune(model, "anchor", …)` under the description's name.

    With `enable_pruning=False` the model is left alone and the handle's `restore()` does nothing.
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
    )
    return Pruning(find_tower(model) if enable_pruning else None, strategy)


class Pruning:
    """A pruned model's handle: the record of the last forward pass, and the way back.

    Attributes:
        strategy: the strategy in force.
        record: the last forward pass, block by block.
    """

    def __init__(self, tower: Tower | None, strategy: Strategy) -> None:
        self.strategy = strategy
        self.record = Record()
        self._hooks: list[Any] = []
        self._tower: Any = tower
        if tower is None:  # pruning is switched off
            return

        check_layers(tower, strategy)
        self._install()
        if not self._drops:
            warnings.warn(
                f"{strategy.name} keeps all {tower.num_tokens} tokens of this tower ({tower.num_prefix_tokens} "
                f"prefix + {tower.num_patches} patches): nothing is dropped; "
                f"{strategy.smaller_budget(tower.num_patches, len(tower.blocks))} would prune",
                stacklevel=3,
            )

    def _install(self) -> None:
        tower, strategy = self._tower, self.strategy
        if (earlier := active_pruning(tower)) is not None:
            raise UserError(
                f"this model is already pruned ({earlier.strategy}): call restore() on the handle that prune() "
                "returned, or anchorprune.restore(model), before pruning it again"
            )
        schedule = strategy.schedule(tower.num_patches, len(tower.blocks))
        shrinks = self._grid(tower.grid, schedule) != tower.grid
        self._first = min((number for number in schedule if number or shrinks), default=len(tower.blocks))
        self._shadowed: dict[int, Any] = {}  # by number, what a block's forward was on the instance, if it was there
        self._attributes: list[tuple[nn.Module, str, Any]] = []
        if shrinks:  # first, because a tower may refuse it
            stem, values = tower.stem, tower.on_grid(tower.grid, tower.grid)
            self._hooks.append(stem.register_forward_pre_hook(self._shrink))
            for part, name, value in values:
                self._shadow(part, name, value)
        for number, block in enumerate(tower.blocks, 1):
            acts = number in schedule
            # Registered also where the strategy acts inside: it sees the block, the forward below does not.
            if number >= self._first:
                hook = partial(self._before, number, acts and strategy.acts == "input")
                self._hooks.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            weighted = strategy.size_weight > 0 and number >= self._first
            if strategy.acts == "inside" and (acts or weighted or self._spares(number)):
                self._shadowed[number] = block.__dict__.get("forward")
                self._shadow(block, "forward", partial(self._forward, number))
            elif acts:
                # The block's own, where torch.compile sees it: its guards do not look at hooks, so that a pruned model
                # might run what was compiled for an unpruned one of the same class.
                self._shadowed[number] = block.__dict__.get("forward")
                self._shadow(block, "forward", block.forward)
        for part, name in product(tower.parts, _WHOLE_GRID):
            if (own := getattr(part, name, None)) is not None:
                self._shadow(part, name, partial(self._refuse, name, own))
        tower.blocks[0].__dict__[_HANDLE] = self
        forget_compiled_code()

    def restore(self) -> None:
        """Make the model what it was. Calling it again does nothing."""
        if not self._hooks:
            return
        for hook in self._hooks:
            hook.remove()
        self._hooks = []
        for part, name, earlier in self._attributes:
            del part.__dict__[name]
            if earlier is not _NOTHING:
                part.__dict__[name] = earlier
        self._tower.blocks[0].__dict__.pop(_HANDLE, None)
        forget_compiled_code()

    __call__ = restore

    def _shadow(self, part: nn.Module, name: str, value: Any) -> None:
        """Give the instance an attribute until `restore`."""
        self._attributes.append((part, name, part.__dict__.get(name, _NOTHING)))
        part.__dict__[name] = value

    def __enter__(self) -> Pruning:
        if self._tower is not None and not self._hooks:
            self._install()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "active" if self._hooks else "restored"
        return f"Pruning({self.strategy}, {state}, tokens {self.tokens_before} -> {self.tokens_after})"

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
        return None if self.record.entered is None else self.record.entered[1]

    @property
    def tokens_after(self) -> int | None:
        """K, the tokens that reach the tower's end; None before the first forward pass."""
        counts = self.tokens_by_block
        return counts[-1] if counts else None

    @property
    def tokens_by_block(self) -> list[int] | None:
        """How many tokens each block's MLP sees; None before the first forward pass."""
        return self.record.tokens_by_block(len(self._tower.blocks))

    @property
    def effective(self) -> bool:
        """Whether this budget drops tokens: in the last forward pass, or before one, at the tower's own image size."""
        if self.tokens_before is not None and self.tokens_after is not None:
            return self.tokens_after < self.tokens_before
        return bool(self._hooks) and self._drops

    def kept_before(self, block: int | None) -> Tensor | None:
        """`kept` as it was for the tokens that entered this block, counted from 1; None: for those that came out."""
        return self.record.kept_before(block)

    def size_bias(self, block: int) -> Tensor | None:
        """What this block's logits gain by the sizes of its tokens, `[B, 1, 1, N]`; None where they gain nothing."""
        sizes = self.record.sizes.get(block) if self.strategy.size_weight else None
        return None if sizes is None else self.strategy.size_weight * sizes.log()[:, None, None, :]

    @contextmanager
    def off_the_record(self) -> Iterator[None]:
        """Forward passes within leave no trace on the handle."""
        record, self.record = self.record, Record()
        try:
            yield
        finally:
            self.record = record

    @property
    def first_block(self) -> int:
        """The first block, counted from 1, that the strategy acts in; the tower's last where it acts in none."""
        return self._first

    @property
    def _drops(self) -> bool:
        patches = self._tower.num_patches
        return any(count < patches for count in self.strategy.schedule(patches, len(self._tower.blocks)).values())

    def _plan(self, number: int, x: Tensor, query_key: Callable[[], tuple[Tensor, Tensor]]) -> TokenPlan | None:
        """The strategy's plan for the tokens x `[B, N, D]` in this block; None where it drops nothing there."""
        tower, record = self._tower, self.record
        prefix = tower.num_prefix_tokens
        batch, n = x.shape[:2]
        if number == self._first:
            record.entered = (batch, n, x.device)
            record.counts = self.strategy.schedule(n - prefix, len(tower.blocks))
        plan = None
        if (count := record.counts.get(number, n)) < n - prefix:
            depth = number / len(tower.blocks)
            tokens = Tokens(
                x,
                prefix,
                query_key,
                record.sizes.get(number),
                depth,
                tower.has_cls,
                lambda: tower.pool_query_key(x[:, prefix:]),
            )
            with torch.no_grad():  # which tokens go on is a choice; gradients flow through the tokens themselves
                plan = self.strategy.plan(tokens, count)
        record.plans[number] = plan
        return plan

    def _grid(self, grid: tuple[int, int], schedule: dict[int, int]) -> tuple[int, int]:
        """Rows and columns that an image of `grid` is cut into under this schedule."""
        return coarser(grid, schedule[0]) if 0 in schedule else grid

    def _shrink(self, stem: nn.Module, args: tuple[Any, ...]) -> Any:
        """Pre-hook of the tower's stem: shrinks the images to the coarser grid that the strategy has."""
        if getattr(stem, "_is_replica", False):
            raise UserError(_REPLICA)
        tower, record = self._tower, self.record
        images = args[0]
        patch = [side // count for side, count in zip(tower.image_size, tower.grid, strict=True)]
        own = (images.shape[-2] // patch[0], images.shape[-1] // patch[1])
        record.entered = (len(images), tower.num_prefix_tokens + own[0] * own[1], images.device)
        record.counts = self.strategy.schedule(own[0] * own[1], len(tower.blocks))
        grid = self._grid(own, record.counts)
        record.plans[0] = as_plan(own, grid, tower.num_prefix_tokens, len(images), images.device)
        for part, name, value in tower.on_grid(grid, own):
            part.__dict__[name] = value
        return (shrink(images, grid[0] * patch[0], grid[1] * patch[1]), *args[1:])

    def _before(self, number: int, acts: bool, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook of a block from the first that the strategy acts in on: drops tokens, or cuts an attention mask."""
        if getattr(block, "_is_replica", False):
            raise UserError(_REPLICA)
        tower = self._tower
        if acts:
            x = tower.tokens(args[0])
            entering = partial(self.kept_before, number)

            asked: list[tuple[Tensor, Tensor]] = []  # functools.cache cannot be traced by torch.compile

            def query_key() -> tuple[Tensor, Tensor]:
                if not asked:
                    asked.append(tower.query_key(block, x, tower.cut(block, args, kwargs, entering)[1]))
                return asked[0]

            plan = self._plan(number, x, query_key)
            if plan is not None:
                x, self.record.sizes[number] = merge_tokens(x, self.record.sizes.get(number), plan)
                args = (tower.tokens(x), *args[1:])
        if number not in self._shadowed or self.strategy.acts == "input":  # otherwise `_forward` does it
            self.record.sizes[number + 1] = self.record.sizes.get(number)
        if number + acts == self._first:  # none dropped so far
            return args, kwargs
        return tower.cut(block, args, kwargs, partial(self.kept_before, number + acts))

    def _forward(self, number: int, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """In place of the forward of a block that the strategy acts inside of, or that comes after a merge."""
        tower, record = self._tower, self.record
        block = tower.blocks[number - 1]
        tokens, bias = tower.tokens(x), self.size_bias(number)
        n = tokens.shape[1] - tower.num_prefix_tokens
        first = number == self._first
        counts = self.strategy.schedule(n, len(tower.blocks)) if first else record.counts
        dropped = record.entered is not None and not first and tokens.shape[1] < record.entered[1]
        spares = dropped and self._spares(number)
        if counts.get(number, n) >= n and bias is None and not spares:  # the block's own, bit for bit
            self._plan(number, tokens, _not_needed)
            record.sizes[number + 1] = record.sizes.get(number)
            earlier = self._shadowed[number]
            return (earlier or partial(type(block).forward, block))(x, *args, **kwargs)

        mask = find_mask(block, (x, *args), kwargs)
        if mask is not None:
            mask = tower.mask_bias(block, mask, tokens)
            bias = mask if bias is None else bias + mask
        tokens, q, k = tower.attention_half(block, tokens, bias, kwargs)
        plan, sizes = self._plan(number, tokens, lambda: (q, k)), record.sizes.get(number)
        if plan is not None:
            tokens, sizes = merge_tokens(tokens, sizes, plan)
        record.sizes[number + 1] = sizes
        if self._spares(number):
            tokens = tokens[:, : tower.num_prefix_tokens]
        return tower.returned(block, tower.tokens(tower.mlp_half(block, tokens)))

    def _spares(self, number: int) -> bool:
        """Whether this block's MLP may run on the prefix alone."""
        last = number == len(self._tower.blocks)
        return last and self.strategy.spares_last_mlp and not self._tower.reads_patches

    def _refuse(self, name: str, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of a method of `_WHOLE_GRID`, which is the tower's `own` while nothing is dropped."""
        if not self.effective:
            return own(*args, **kwargs)
        raise UserError(f"{name} needs the whole grid of tokens: restore() this pruned model first")


def _not_needed() -> tuple[Tensor, Tensor]:
    raise AssertionError("nothing is dropped here")


def check_layers(tower: Tower, strategy: Strategy) -> None:
    """Raise FieldError for a strategy that acts in a block that the tower does not have."""
    blocks = len(tower.blocks)
    if (last := max(strategy.schedule(tower.num_patches, blocks), default=0)) > blocks:
        fix = f"this tower has blocks 1 … {blocks}"
        for field in fields(strategy):
            if field.name in ("prune_layer", "prune_layers"):
                raise FieldError(field.name, last, f"{fix}; choose one of them")
        raise UserError(f"{strategy.name} acts in block {last}: {fix}")


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
