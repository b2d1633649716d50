"""Strategies in tests, with budgets for the small towers: each, one of each kind, or each somewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from anchorprune.strategies import make_strategy, standalone
from support.models import LAYERS, TOKENS

# A budget that prunes the small towers of these tests, and one that covers all of their tokens.
SMALL = {
    "anchor": {"k_anchors": 2, "top_m": 4},
    "cls_attention": {"prune_layers": 2, "keep_patches": 6},
    "coarse": {"keep_patches": 6, "grid_share": 0.5},
    "evit": {"prune_layers": (2, 3), "keep_patches": 6},
    "max_min": {"keep_patches": 6},
    "pitome": {"r": 3},
    "random": {"keep_patches": 6},
    "rapid_like": {"r": 3},
    "thin": {"keep_patches": 6},
    "tofu": {"r": 3},
    "token_transforming": {"prune_layers": (2, 3), "keep_patches": 6},
    "tome": {"r": 3},
    "vwt_intra": {"keep_patches": 6},
    "zero_tprune": {"prune_layers": (2, 3), "keep_patches": 6},
}
COVERING = {
    "anchor": {"k_anchors": 10, "top_m": 50},
    "cls_attention": {"prune_layers": 2, "keep_patches": 16},
    "coarse": {"keep_patches": 16},
    "evit": {"prune_layers": 2, "keep_ratio": 1.0},
    "max_min": {"keep_patches": 60},
    "pitome": {"r": 0},
    "random": {"keep_patches": 16},
    "rapid_like": {"r": 0},
    "thin": {"keep_patches": 16},
    "tofu": {"r": 0},
    "token_transforming": {"prune_layers": 2, "keep_patches": 16},
    "tome": {"r": 0},
    "vwt_intra": {"keep_ratio": 1.0},
    "zero_tprune": {"prune_layers": 2, "keep_patches": 16},
}

# Of each way of acting on a tower one: tokens dropped at a block's input by CLS attention, and without any score; a
# coarser grid, thinning inside blocks and a last MLP on CLS alone; a token that stands for the dropped ones; merging
# with sizes; pixels, before block 1.
KINDS = ("anchor", "random", "coarse", "evit", "tome", "vwt_intra")

every_strategy = pytest.mark.parametrize("strategy", sorted(standalone()))
every_kind = pytest.mark.parametrize("strategy", KINDS)


def across(
    places: Iterable[str], strategies: Iterable[str] | None = None, kinds: Sequence[str] = KINDS
) -> list[tuple[str, str]]:
    """Each of the `kinds` in each place, and each other of the `strategies` in one of them, in turn."""
    names = list(places)
    others = sorted(set(standalone() if strategies is None else strategies) - set(kinds))
    return [(place, kind) for place in names for kind in kinds] + [
        (names[i % len(names)], strategy) for i, strategy in enumerate(others)
    ]


def promised(strategy: str) -> int:
    """Tokens that come out of the small towers under `SMALL`."""
    return 1 + min(make_strategy(strategy, **SMALL[strategy]).schedule(TOKENS - 1, LAYERS).values())
