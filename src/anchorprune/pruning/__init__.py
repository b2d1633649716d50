"""A strategy put into a tower: `prune` and its handle, and what follows from it (attention, cost, budget)."""

from __future__ import annotations

from anchorprune.pruning.injection import Pruning, apply_pruning_to_model, prune, restore

__all__ = ["Pruning", "apply_pruning_to_model", "prune", "restore"]
