"""`target_gmacs`: the largest budget of a strategy under which the image tower costs no more than that."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial

from torch import nn

from anchorprune.errors import FieldError
from anchorprune.pruning import prune
from anchorprune.pruning.cascade import cost_by_share
from anchorprune.pruning.cost import image_tower_flops
from anchorprune.strategies.base import Strategy
from anchorprune.strategies.cascade import Cascade
from anchorprune.towers import find_tower


def solve(model: nn.Module, strategy: Strategy, target_gmacs: float) -> Strategy:
    """The strategy with the largest of its `budgets` that costs at most `target_gmacs`; all else as it is.

    Args:
        model: unpruned; on the meta device is enough.
        target_gmacs: multiply-adds in billions of the image tower for one image at its own size, selection included.

    Raises:
        FieldError: not pruning costs no more than that, or no budget of this strategy gets down to it.
    """
    tower = find_tower(model)
    dense = image_tower_flops(model) / 2e9
    if not 0 < target_gmacs < dense:
        fix = f"must be above 0 and below what the unpruned tower costs, {dense:.2f}"
        raise FieldError("target_gmacs", f"{target_gmacs:g}", fix)
    budget, budgets = strategy.budget_fields, strategy.budgets(tower.num_patches, len(tower.blocks))
    cost: Callable[[Strategy], float] = partial(gmacs, model)
    if isinstance(strategy, Cascade):
        cost = cost_by_share(model, strategy)
    # Along the budgets the cost falls; a first few may cost more than not pruning at all, by their selection.
    low, high = 0, len(budgets) - 1
    if (least := cost(budgets[high])) > target_gmacs:
        text = f"{strategy.name} gets down to {least:.3g} here (%s); give a larger number"
        smallest = budgets[high]  # whose number may be the field's default
        fields = smallest.changed() | {name: value for name in budget if (value := getattr(smallest, name))}
        typed = text % smallest.flags(fields)
        raise FieldError("target_gmacs", f"{target_gmacs:g}", text % smallest.spelled(fields), typed=typed)
    while low < high:
        middle = (low + high) // 2
        if cost(budgets[middle]) <= target_gmacs:
            high = middle
        else:
            low = middle + 1
    # A budget may cost a trifle more than the next larger one: where it is the first to choose in one more block.
    while high >= 2 and cost(budgets[high - 2]) <= target_gmacs:
        high -= 2
    return budgets[high]


def gmacs(model: nn.Module, strategy: Strategy) -> float:
    """Multiply-adds in billions of the image tower for one image, pruned by the strategy, selection included."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that a budget covers everything
        with prune(model, strategy):
            return image_tower_flops(model) / 2e9
