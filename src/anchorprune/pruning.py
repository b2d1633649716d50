"""`prune`: put a strategy into a model, record what it keeps, and take it out again without a trace.

Injection is forward pre-hooks and nothing else. The hook of block ℓ gathers the tokens; the hooks of the blocks
from ℓ on gather an attention mask where the tower hands one to them. No class and no forward is replaced, so the
blocks run their own code, fused attention included, and removing the hooks restores the model exactly.
"""

from __future__ import annotations

import sys
import warnings
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from anchorprune.errors import FieldError, UserError
from anchorprune.masks import find_mask, gather_mask, with_mask
from anchorprune.strategies import make_strategy
from anchorprune.strategies.base import Strategy
from anchorprune.tokens import TokenPlan, Tokens, gather_tokens
from anchorprune.towers import Tower, find_tower


def prune(model: nn.Module, strategy: str | Strategy = "anchor", **fields: Any) -> Pruning:
    """Prune the image tower of `model` from now on, in place, until `restore()`.

    Args:
        model: an open_clip model, its image tower (`model.visual`), or either one compiled.
        strategy: a strategy's name (its `fields` follow) or a strategy object.
        fields: the strategy's fields, such as `k_anchors=10`.

    Returns:
        A handle that restores the model when called, when `restore()` is called and at the end of a `with` block,
        and that holds what the last forward pass kept.

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
        kept: LongTensor `[B, K]`, indices of the kept tokens, prefix included, ascending; all N of them where
            nothing was dropped. None before the first forward pass. Under CUDA graphs (`mode="reduce-overhead"`)
            clone it before the next forward pass, which overwrites it.
        plan: all that the strategy returned (None where nothing was dropped).
        tokens_before, tokens_after: N and K. None before the first forward pass.
    """

    def __init__(self, tower: Tower | None, strategy: Strategy) -> None:
        self.strategy = strategy
        self.kept: Tensor | None = None
        self.plan: TokenPlan | None = None
        self.tokens_before: int | None = None
        self.tokens_after: int | None = None
        self._hooks: list[Any] = []
        if tower is None:  # pruning is switched off
            return
        self._tower = tower

        if (earlier := active_pruning(tower)) is not None:
            raise UserError(
                f"this model is already pruned ({earlier.strategy}): call restore() on the handle that prune() "
                "returned, or anchorprune.restore(model), before pruning it again"
            )
        check_layer(tower, strategy)
        if strategy.keep_count(tower.num_tokens, tower.num_prefix_tokens) >= tower.num_tokens:
            warnings.warn(
                f"{strategy.name} keeps all {tower.num_tokens} tokens of this tower ({tower.num_prefix_tokens} "
                f"prefix + {tower.num_patches} patches): nothing is dropped; "
                f"{strategy.smaller_budget(tower.num_patches)} would prune",
                stacklevel=3,
            )

        first = strategy.prune_layer - 1
        self._hooks = [tower.blocks[first].register_forward_pre_hook(self._drop_tokens, with_kwargs=True)]
        self._hooks += [
            block.register_forward_pre_hook(self._gather_mask, with_kwargs=True) for block in tower.blocks[first:]
        ]
        if hasattr(tower.module, "forward_intermediates"):
            tower.module.__dict__["forward_intermediates"] = self._refuse_intermediates
        forget_compiled_code()

    def restore(self) -> None:
        """Make the model what it was. Calling it again does nothing."""
        if self._hooks:
            for hook in self._hooks:
                hook.remove()
            self._hooks = []
            self._tower.module.__dict__.pop("forward_intermediates", None)
            forget_compiled_code()

    __call__ = restore

    def __enter__(self) -> Pruning:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.restore()

    def __repr__(self) -> str:
        state = "active" if self._hooks else "restored"
        return f"Pruning({self.strategy}, {state}, tokens {self.tokens_before} -> {self.tokens_after})"

    @property
    def effective(self) -> bool:
        """Whether this budget drops tokens: in the last forward pass, or before one, at the tower's own image size."""
        if self.tokens_before is not None and self.tokens_after is not None:
            return self.tokens_after < self.tokens_before
        if not self._hooks:
            return False
        tower = self._tower
        return self.strategy.keep_count(tower.num_tokens, tower.num_prefix_tokens) < tower.num_tokens

    def _drop_tokens(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook of block ℓ: the strategy's plan, then the gather. Returns the block's new arguments."""
        if getattr(block, "_is_replica", False):
            raise UserError("a pruned model cannot run under nn.DataParallel; use DistributedDataParallel")
        tower = self._tower
        x = tower.tokens(args[0])
        batch, n = x.shape[:2]
        if self.strategy.keep_count(n, tower.num_prefix_tokens) >= n:
            self._record(None, torch.arange(n, device=x.device).expand(batch, -1), n)
            return None
        with torch.no_grad():  # which tokens go on is a choice; gradients flow through the tokens themselves
            plan = self.strategy.plan(Tokens(x, tower.num_prefix_tokens, lambda x: tower.query_key(block, x)))
        self._record(plan, plan.keep, n)
        return (tower.tokens(gather_tokens(x, plan.keep)), *args[1:]), kwargs

    def _record(self, plan: TokenPlan | None, kept: Tensor, tokens_before: int) -> None:
        if kept.is_meta:  # only FLOPs are being counted
            return
        self.plan, self.kept = plan, kept
        self.tokens_before, self.tokens_after = tokens_before, kept.shape[1]

    def _gather_mask(self, block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Pre-hook of the blocks from ℓ on: an attention mask, where there is one, at the kept tokens."""
        mask = find_mask(block, args, kwargs)
        if self.plan is None or mask is None:
            return None
        return with_mask(block, args, kwargs, gather_mask(mask, self.plan.keep, block.attn.num_heads))

    def _refuse_intermediates(self, *args: Any, **kwargs: Any) -> Any:
        """In place of the tower's `forward_intermediates`, which would lay the kept tokens out as the whole grid."""
        module: Any = self._tower.module
        if not self.effective:
            return type(module).forward_intermediates(module, *args, **kwargs)
        raise UserError("forward_intermediates needs the whole grid of tokens: restore() this pruned model first")


def check_layer(tower: Tower, strategy: Strategy) -> None:
    """Raise FieldError for a strategy that prunes at a block that the tower does not have."""
    if strategy.prune_layer > len(tower.blocks):
        fix = f"this tower has blocks 1 … {len(tower.blocks)}; choose one from 2 on"
        raise FieldError("prune_layer", strategy.prune_layer, fix)


def restore(model: nn.Module) -> None:
    """Make `model` what it was before it was pruned, without the handle: a deep copy's, say. No-op if unpruned."""
    pruning = active_pruning(find_tower(model))
    if pruning is not None:
        pruning.restore()


def active_pruning(tower: Tower) -> Pruning | None:
    """The handle of the pruning that is in force on this tower; a deep copy of a pruned model has its own."""
    for block in tower.blocks:
        for hook in block._forward_pre_hooks.values():
            if isinstance(owner := getattr(hook, "__self__", None), Pruning):
                return owner
    return None


def forget_compiled_code() -> None:
    """Make torch.compile look at the hooks again, in the whole process.

    Compiled code does not check for hooks that came or went after it was compiled: it would run the model
    unpruned, or pruned after `restore()`. Dropping the compiled code costs one compilation at the next call.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()
