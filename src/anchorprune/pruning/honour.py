"""What a user put into a model's blocks either takes part in the pruned model too, or is refused before it runs.

The towers' halves of a block call the modules that are there. What they stand in for themselves (the block's forward
and its attention's) must be the library's own, and nothing may wait to be called there.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from anchorprune.errors import UserError
from anchorprune.strategies.base import Strategy
from anchorprune.towers.base import Tower

_HOOKS = {
    "_forward_hooks": "a forward hook",
    "_forward_pre_hooks": "a forward pre-hook",
    "_backward_hooks": "a backward hook",
    "_backward_pre_hooks": "a backward pre-hook",
}


def check_honoured(tower: Tower, strategy: Strategy, inside: set[int], at_input: set[int]) -> None:
    """Raise UserError for what this pruning would pass over, or run twice.

    Args:
        inside: numbers of the blocks whose forward the tower's halves stand in for.
        at_input: numbers of the others that the strategy acts in; it may score there by queries and keys.
    """
    for number, block in enumerate(tower.blocks, 1):
        scores = number in at_input and strategy.scores
        if number not in inside and not scores:
            continue
        for part in tower.replaced(block):
            reason = _foreign(tower, part)
            if reason is None and part is not block:
                names = _HOOKS if number in inside else {"_forward_pre_hooks": _HOOKS["_forward_pre_hooks"]}
                reason = next((f"has {what}" for name, what in names.items() if any(_theirs(part, name))), None)
            if reason is not None:
                raise UserError(
                    f"cannot prune by {strategy.name}: {_called(number, block, part)} {reason}, which pruning would "
                    f"pass over; {_way_out(strategy, number in inside)}"
                )
        if scores:
            for module in (m for part in tower.scored(block) for m in part.modules()):
                for name, what in _HOOKS.items():
                    if any(_theirs(module, name)):
                        raise UserError(
                            f"cannot prune by {strategy.name}: {_called(number, block, module)} has {what}, which "
                            "would run twice, because tokens are scored by it; remove it, or choose another block"
                        )


def _way_out(strategy: Strategy, inside: bool) -> str:
    if inside:
        return "remove it (merge adapters), or choose a strategy that acts at a block's input, such as random"
    return "remove it (merge adapters), or choose a strategy that scores nothing, such as random"


def _foreign(tower: Tower, part: nn.Module) -> str | None:
    """Why the forward of a part is none of the library's own; None where it is."""
    kind = type(part)
    owner = next(cls for cls in kind.__mro__ if "forward" in vars(cls))
    packages = (*tower.libraries, "torch.nn")
    if not any(owner.__module__ == package or owner.__module__.startswith(package + ".") for package in packages):
        return f"is {kind.__name__} with a forward of {owner.__module__}"
    for name in vars(part):
        if callable(getattr(kind, name, None)):
            return f"has a {name} of its own"
    return None


def _theirs(module: nn.Module, name: str) -> Iterator[object]:
    """The hooks of this kind, but those by which transformers hands out what its modules return."""
    hooks = getattr(module, name) or {}
    return (hook for hook in hooks.values() if not str(getattr(hook, "__module__", "")).startswith("transformers."))


def _called(number: int, block: nn.Module, part: nn.Module) -> str:
    name = next((name for name, module in block.named_modules() if module is part), "")
    return f"block {number}" + (f"'s {name}" if name else "")
