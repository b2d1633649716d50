"""What a pruning does to a tower: hooks and shadowed attributes that drop, merge and count tokens, and their removal.

A strategy that acts at a block's input needs a forward pre-hook that gathers the tokens, and no more. One that acts
inside a block, between attention and MLP, has that block's forward shadowed on the instance by the tower's two
halves. Blocks in which nothing happens run their own code, fused attention included. No class is replaced and no
parameter is touched, so that removing hooks and shadows restores the model exactly.

All state of a forward pass is in its record (`passes.py`); everything here can be copied and pickled with the model.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from itertools import product
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from anchorprune.errors import UserError
from anchorprune.pruning.grid import Grid, coarser, pixel_variance, shrink
from anchorprune.pruning.honour import check_honoured
from anchorprune.pruning.passes import Passes
from anchorprune.pruning.record import Record
from anchorprune.strategies.base import Strategy
from anchorprune.tokens import TokenPlan, Tokens, exporting, merge_tokens
from anchorprune.towers import Tower
from anchorprune.towers.base import Changes
from anchorprune.towers.masks import find_mask

_REPLICA = "a pruned model cannot run under nn.DataParallel; use DistributedDataParallel"
# Methods of towers that would lay the kept tokens out as the whole grid.
_WHOLE_GRID = ("forward_intermediates", "get_intermediate_layers")


class Hooks:
    """One strategy in one tower; in force between `install` and `remove`.

    Attributes:
        first: the first block, counted from 1, that the strategy acts in; 0 where the image itself gets a coarser grid
            or is looked at; the tower's last where it acts in none.
        small_images: whether images come in `image_size` already, rather than in the tower's own.
    """

    def __init__(self, tower: Tower, given: Strategy, passes: Passes, small_images: bool = False) -> None:
        strategy, self._align = given.applied()
        self.tower, self.strategy, self.passes = tower, strategy, passes
        self._schedule = strategy.schedule(tower.num_patches, len(tower.blocks))
        self._coarse = self._grid(tower.grid, self._schedule)
        self._shrinks = self._coarse != tower.grid
        self.small_images = small_images
        acts = [n for n in self._schedule if n or self._shrinks]
        self.first = 0 if strategy.reads_pixels else min(acts, default=len(tower.blocks))
        self._handles: list[Any] = []
        # Part, name, whether the instance had such an attribute, and which.
        self._shadows: list[tuple[nn.Module, str, bool, Any]] = []

    @property
    def installed(self) -> bool:
        return bool(self._handles)

    @property
    def drops(self) -> bool:
        """Whether it drops tokens of an image of the tower's own size."""
        return any(count < self.tower.num_patches for count in self._schedule.values())

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels of an image on the coarser grid; the tower's own where it keeps its grid."""
        height, width = self.tower.image_size
        if not self._shrinks:
            return height, width
        rows, columns = self.tower.grid
        return height // rows * self._coarse[0], width // columns * self._coarse[1]

    def install(self) -> None:
        """Raises UserError, with the tower as it was, for what the tower cannot do or could not honour."""
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def _install(self) -> None:
        tower, strategy = self.tower, self.strategy
        inside = {n for n in range(1, len(tower.blocks) + 1) if self._replaces(n)}
        check_honoured(tower, strategy, inside, {n for n in self._schedule if n} - inside)
        changes = tower.on_grid(self.grids) if self._shrinks else Changes()
        pooling = tower.pool_by_size(self.sizes_at_the_end, self.bias_at_the_end, strategy.size_weight > 0)
        if strategy.reads_pixels:
            self._handles.append(self._stem().register_forward_pre_hook(self._look, with_kwargs=True))
        if self._shrinks:
            self._handles.append(tower.stem.register_forward_pre_hook(self._shrink, with_kwargs=True))
        for number, block in enumerate(tower.blocks, 1):
            acts = number in self._schedule
            # Registered also where the strategy acts inside: it sees the block, the forward below does not.
            if number >= self.first:
                hook = partial(self._before, number, acts and strategy.acts == "input")
                self._handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
            if number in inside:
                self._shadow(block, "forward", partial(self._forward, number))
            elif acts:
                # The block's own, where torch.compile sees it: its guards do not look at hooks, so that a pruned model
                # might run what was compiled for an unpruned one of the same class.
                self._shadow(block, "forward", block.forward)
        for change in (changes, pooling):
            for part, name, value in change.attributes:
                self._shadow(part, name, value)
            for part, function in change.pre_hooks:
                self._handles.append(part.register_forward_pre_hook(function, with_kwargs=True))
            for part, function in change.hooks:
                self._handles.append(part.register_forward_hook(function))
        if self._align is not None and self.drops:
            self._handles.append(tower.module.register_forward_hook(self._aligned))
        for part, name in product(tower.parts, _WHOLE_GRID):
            if (own := getattr(part, name, None)) is not None:
                self._shadow(part, name, partial(self._refuse, name, own))

    def _stem(self) -> nn.Module:
        """The tower's stem, for a look at what goes into it."""
        try:
            return self.tower.stem
        except UserError as error:
            kind, name = type(self.tower.module).__name__, self.strategy.name
            raise UserError(
                f"{name} goes by the pixels of patches, which {kind} does not show: choose another strategy"
            ) from error

    def remove(self) -> None:
        """Make the tower what it was."""
        for hook in self._handles:
            hook.remove()
        for part, name, there, earlier in reversed(self._shadows):
            del part.__dict__[name]
            if there:
                part.__dict__[name] = earlier
        self._handles, self._shadows = [], []

    def _shadow(self, part: nn.Module, name: str, value: Any) -> None:
        """Give the instance an attribute until `remove`."""
        if isinstance(getattr(type(part), name, None), property):  # as torch.nn.utils.parametrize makes it
            raise UserError(f"{self.strategy.name} cannot stand in for the {name} of this tower, which is parametrised")
        self._shadows.append((part, name, name in part.__dict__, part.__dict__.get(name)))
        part.__dict__[name] = value

    def _replaces(self, number: int) -> bool:
        """Whether the tower's two halves stand in for this block's forward."""
        acts = number in self._schedule
        weighted = self.strategy.size_weight > 0 and number >= self.first
        return self.strategy.acts == "inside" and (acts or weighted or self._spares(number))

    def _spares(self, number: int) -> bool:
        """Whether this block's MLP may run on the prefix alone."""
        last = number == len(self.tower.blocks)
        return last and self.strategy.spares_last_mlp and not self.tower.reads_patches

    # Of a forward pass.

    def size_bias(self, block: int) -> Float[Tensor, "B 1 1 N"] | None:
        """What this block's logits gain by the sizes of its tokens, `[B, 1, 1, N]`; None where they gain nothing.

        The block after the last: what the logits of a head that pools the tokens by attention gain.
        """
        sizes = self.passes.current.sizes.get(block) if self.strategy.size_weight else None
        return None if sizes is None else self.strategy.size_weight * sizes.log()[:, None, None, :]

    def sizes_at_the_end(self) -> Float[Tensor, "B N"] | None:
        """`[B, N]`, how many of the image's own tokens each stands for that comes out of the last block."""
        return self.passes.current.sizes.get(len(self.tower.blocks) + 1)

    def bias_at_the_end(self) -> Float[Tensor, "B 1 1 N"] | None:
        return self.size_bias(len(self.tower.blocks) + 1)

    def grids(self) -> tuple[Grid, Grid]:
        """The grid that the image of this pass has, and the one that it had before it was shrunk."""
        return self.passes.current.grids or (self.tower.grid, self.tower.grid)

    def _grid(self, grid: Grid, schedule: dict[int, int]) -> Grid:
        """Rows and columns that an image of `grid` is cut into under this schedule."""
        return coarser(grid, schedule[0]) if 0 in schedule else grid

    def _begin(self, batch: int, n: int, device: torch.device) -> Record:
        record = self.passes.begin()
        record.entered = (batch, n, device)
        record.counts = self.strategy.schedule(n - self.tower.num_prefix_tokens, len(self.tower.blocks))
        return record

    def _plan(
        self,
        number: int,
        x: Tensor,
        query_key: Callable[[], tuple[Tensor, Tensor]],
        raw: Callable[[], tuple[Tensor, Tensor] | None] = lambda: None,
    ) -> TokenPlan | None:
        """The strategy's plan for the tokens x `[B, N, D]` in this block; None where it drops nothing there."""
        tower, record = self.tower, self.passes.current
        prefix, n = tower.num_prefix_tokens, x.shape[1]
        plan = None
        if (count := record.counts.get(number, n)) < n - prefix:
            blocks = len(tower.blocks)
            pool = partial(_pool_query_key, tower, x, prefix)
            sizes = record.sizes.get(number)
            depth, pixels = number / blocks, record.pixel_variance
            tokens = Tokens(x, prefix, query_key, sizes, depth, tower.has_cls, pool, raw, blocks, pixels)
            with (
                nullcontext() if exporting() else torch.no_grad()
            ):  # which tokens go on is a choice; gradients flow through the tokens themselves
                plan = self.strategy.plan(tokens, count)
        record.plans[number] = plan
        return plan

    def _look(self, stem: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Pre-hook of the tower's stem: how much the pixels of each patch vary."""
        if getattr(stem, "_is_replica", False):
            raise UserError(_REPLICA)
        tower = self.tower
        images = args[0] if args else next(iter(kwargs.values()))  # by position, or as the first keyword
        height, width = (side // count for side, count in zip(tower.image_size, tower.grid, strict=True))
        with nullcontext() if exporting() else torch.no_grad():
            variance = pixel_variance(images, height, width)
        record = self._begin(images.shape[0], tower.num_prefix_tokens + variance.shape[1], images.device)
        record.pixel_variance = variance

    def _shrink(self, stem: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook of the tower's stem: shrinks the images to the coarser grid that the strategy has."""
        if getattr(stem, "_is_replica", False):
            raise UserError(_REPLICA)
        tower = self.tower
        name = "" if args else next(iter(kwargs))  # by position, or as the first keyword
        images = args[0] if args else kwargs[name]
        height, width = images.shape[-2:]
        own = tower.grid_of(height, width, kwargs)
        if self.small_images:  # of the tower's own size, shrunk before they came
            own = tower.grid if (height, width) == self.image_size else None
        if own is None:
            taken, reason = (
                (self.image_size, "this pruning, with small_images,")
                if self.small_images
                else (tower.image_size, "this tower")
            )
            raise UserError(f"images of {height} × {width} pixels: {reason} takes {taken[0]} × {taken[1]}")
        patch = [side // count for side, count in zip(tower.image_size, tower.grid, strict=True)]
        record = self._begin(images.shape[0], tower.num_prefix_tokens + own[0] * own[1], images.device)
        grid = self._grid(own, record.counts)
        record.grids = (grid, own)
        small = images if self.small_images else shrink(images, grid[0] * patch[0], grid[1] * patch[1])
        return ((small, *args[1:]), kwargs) if args else (args, {**kwargs, name: small})

    def _before(self, number: int, acts: bool, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook of a block from the first that the strategy acts in on: drops tokens, or cuts an attention mask."""
        if getattr(block, "_is_replica", False):
            raise UserError(_REPLICA)
        tower = self.tower
        if acts:
            x = tower.tokens(args[0])
            if number == self.first:
                self._begin(x.shape[0], x.shape[1], x.device)
            entering = partial(self.kept_before, number)

            asked: list[tuple[Tensor, Tensor]] = []  # functools.cache cannot be traced by torch.compile

            def query_key() -> tuple[Tensor, Tensor]:
                if not asked:
                    asked.append(tower.query_key(block, x, tower.cut(block, args, kwargs, entering)[1]))
                return asked[0]

            def raw() -> tuple[Tensor, Tensor] | None:
                return tower.raw_query_key(block, x, tower.cut(block, args, kwargs, entering)[1])

            plan, sizes = self._plan(number, x, query_key, raw), self.passes.current.sizes
            if plan is not None:
                x, sizes[number] = merge_tokens(x, sizes.get(number), plan)
                args = (tower.tokens(x), *args[1:])
        if not self._replaces(number):  # otherwise `_forward` does it
            sizes = self.passes.current.sizes
            sizes[number + 1] = sizes.get(number)
        if number + acts == self.first:  # none dropped so far
            return args, kwargs
        return tower.cut(block, args, kwargs, partial(self.kept_before, number + acts))

    def _forward(self, number: int, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """In place of the forward of a block that the strategy acts inside of, or that comes after a merge."""
        tower, block = self.tower, self.tower.blocks[number - 1]
        tokens = tower.tokens(x)
        if number == self.first:
            self._begin(tokens.shape[0], tokens.shape[1], tokens.device)
        record, bias = self.passes.current, self.size_bias(number)
        n = tokens.shape[1] - tower.num_prefix_tokens
        spares = self._spares(number) and record.entered is not None and tokens.shape[1] < record.entered[1]
        if record.counts.get(number, n) >= n and bias is None and not spares:  # the block's own, bit for bit
            self._plan(number, tokens, _not_needed)
            record.sizes[number + 1] = record.sizes.get(number)
            return type(block).forward(block, x, *args, **kwargs)

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

    def _aligned(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Hook of the tower: its output with the features aligned, where tokens were dropped."""
        assert self._align is not None
        return self.tower.with_features(output, self._align)

    def kept_before(self, block: int | None) -> Int[Tensor, "B K"] | None:
        return self.passes.current.kept_before(block)

    def dropped(self) -> bool:
        """Whether tokens were dropped in this thread's last pass; before one, whether they will be."""
        counts, record = self.passes.current.tokens_by_block(len(self.tower.blocks)), self.passes.current
        if counts and record.entered is not None:
            return counts[-1] < record.entered[1]
        return self.installed and self.drops

    def _refuse(self, name: str, own: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """In place of a method of `_WHOLE_GRID`, which is the tower's `own` while nothing is dropped."""
        if not self.dropped():
            return own(*args, **kwargs)
        raise UserError(f"{name} needs the whole grid of tokens: restore() this pruned model first")


def _pool_query_key(tower: Tower, x: Tensor, prefix: int) -> tuple[Tensor, Tensor] | None:
    return tower.pool_query_key(x[:, prefix:])


def _not_needed() -> tuple[Tensor, Tensor]:
    raise AssertionError("nothing is dropped here")
