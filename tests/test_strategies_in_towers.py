"""What the strategies do inside real towers: where each token ends, what attention sees, what it costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from support import naive_strategies as naive
from support.models import HEADS, LAYERS, PATCH, TOKENS, WIDTH, make_visual
from support.strategies import SMALL, across, every_strategy
from test_masks import BATCH, CASES, by_hand
from test_pruning import TOWERS
from test_strategies import read
from torch import Tensor, nn

import anchorprune
from anchorprune import UserError
from anchorprune.pruning.budget import gmacs, solve
from anchorprune.strategies import make_strategy, registry, standalone
from anchorprune.strategies.base import StepwiseStrategy, Strategy
from anchorprune.strategies.evit import Evit
from anchorprune.strategies.tome import MergingStrategy
from anchorprune.tokens import TokenPlan, Tokens, cls_attention
from anchorprune.towers import Tower, find_tower

INSIDE = sorted(name for name, cls in registry().items() if name in standalone() and cls.acts == "inside")
every_inside_strategy = pytest.mark.parametrize("strategy", INSIDE)


def tokens_first(visual: nn.Module) -> nn.Module:
    """The layout of open_clip up to 2.24."""
    visual.transformer.batch_first = False
    for block in visual.transformer.resblocks:
        block.attn.batch_first = False
    return visual


MORE_TOWERS: dict[str, Callable[[], nn.Module]] = {
    "layer scale": lambda: make_visual(ls_init_value=0.5),
    "custom blocks with layer scale": lambda: make_visual(block_type="custom", ls_init_value=0.5),
    "scale_heads": lambda: make_visual(scale_heads=True),
    "scale_attn_inner": lambda: make_visual(scale_attn_inner=True),
    "scale_attn": lambda: make_visual(scale_attn=True),
    "scale_fc": lambda: make_visual(scale_fc=True),
    "all of these": lambda: make_visual(
        qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_attn=True, scale_fc=True, ls_init_value=0.5
    ),
    "tokens first": lambda: tokens_first(make_visual(ls_init_value=0.5)),
}


def every_number_its_own(visual: nn.Module) -> nn.Module:
    """Biases, scales and gains as after training, where none is 0, 1 or equal to its neighbour."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in visual.transformer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return visual


def residual(*shape: int) -> Tensor:
    return torch.randn(*shape, WIDTH, generator=torch.Generator().manual_seed(2))


# The two halves of a block.


@pytest.mark.parametrize("tower", [*TOWERS, *MORE_TOWERS])
@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
@torch.no_grad()
def test_the_two_halves_of_a_block_are_the_block(tower: str, masked: bool) -> None:
    found = find_tower(every_number_its_own((TOWERS | MORE_TOWERS)[tower]()))
    mask = torch.randn(TOKENS, TOKENS, generator=torch.Generator().manual_seed(3)) if masked else None
    x = residual(3, TOKENS)
    for block in found.blocks:
        whole = found.tokens(block(found.tokens(x), attn_mask=mask))
        between, q, k = found.attention_half(block, x, mask)
        torch.testing.assert_close(found.mlp_half(block, between), whole)
        own_q, own_k = found.query_key(block, x)
        torch.testing.assert_close((q, k), (own_q, own_k))
        x = whole


# Where each token ends.


def followed(plans: list[naive.Plan], n: int) -> list[int]:
    """Where each of the n tokens of one image ends, −1 for dropped ones, step by step."""
    at: list[int | None] = list(range(n))
    for plan in plans:
        new_place = {old: new for new, old in enumerate(plan.keep)}
        at = [None if old is None else new_place.get(plan.goes_into.get(old, old)) for old in at]
    return [-1 if place is None else place for place in at]


@pytest.mark.parametrize(("tower", "strategy"), across(["plain", "custom blocks", "tokens first", "average pooling"]))
@torch.no_grad()
def test_each_token_is_assigned_to_the_place_where_it_ended(strategy: str, tower: str, images: Tensor) -> None:
    visual = (TOWERS | MORE_TOWERS)[tower]()
    with anchorprune.prune(visual, strategy, **SMALL[strategy]) as pruning:
        assert pruning.assignment is None
        visual(images)
    plans = pruning.record.plans_before(None)
    assert plans
    assignment, kept = pruning.assignment, pruning.kept
    assert assignment.shape == (len(images), TOKENS)
    for i in range(len(images)):
        places = assignment[i].tolist()
        assert places == followed([read(plan, i) for plan in plans], TOKENS)
        assert [places[token] for token in kept[i].tolist()] == list(range(kept.shape[1]))
        assert places[0] == 0  # CLS
        merges = any(plan.merged is not None for plan in plans)
        assert (-1 in places) != merges or strategy in ("coarse", "rapid_like", "tofu")  # the others drop or merge
    if issubclass(registry()[strategy], MergingStrategy):
        sizes = pruning.record.sizes[LAYERS + 1]
        counted = torch.stack([row[row >= 0].bincount(minlength=kept.shape[1]) for row in assignment])
        assert torch.equal(sizes.long(), counted)


@torch.no_grad()
def test_nothing_dropped_means_each_token_in_its_own_place(images: Tensor) -> None:
    visual = make_visual()
    with pytest.warns(UserWarning, match="nothing is dropped"):
        pruning = anchorprune.prune(visual, "tome", r=0)
    visual(images)
    assert pruning.assignment.tolist() == [list(range(TOKENS))] * len(images)


# Proportional attention.


def of_copies(distinct: int, layers: int) -> tuple[nn.Module, Tensor]:
    """A tower without places and an image for it in which each of `distinct` patches is there equally often."""
    visual = make_visual(layers=layers)
    with torch.no_grad():
        visual.positional_embedding[1:] = visual.positional_embedding[1]
    different = torch.randn(2, 3, distinct, PATCH, PATCH, generator=torch.Generator().manual_seed(5))
    patches = different.repeat_interleave((TOKENS - 1) // distinct, dim=2)  # [2, 3, 16, P, P], copies side by side
    rows = patches.unflatten(2, (4, 4)).permute(0, 1, 2, 4, 3, 5)
    return visual, rows.reshape(2, 3, 4 * PATCH, 4 * PATCH)


@pytest.mark.parametrize(
    ("strategy", "distinct", "layers"), [("tome", 1, 4), ("tome", 2, 3), ("tome", 4, 2), ("pitome", 1, 4)]
)
@torch.no_grad()
def test_merging_copies_changes_nothing(strategy: str, distinct: int, layers: int) -> None:
    # Each block merges half of the patches, all of them copies; attention counts them as if they were still there.
    visual, image = of_copies(distinct, layers)
    dense = visual(image)
    with anchorprune.prune(visual, strategy, r=8, prop_attn="on") as pruning:
        torch.testing.assert_close(visual(image), dense, rtol=1e-4, atol=1e-4)
    assert pruning.tokens_after == 1 + 16 // 2**layers
    with anchorprune.prune(visual, strategy, r=8, prop_attn="off"):
        assert not torch.allclose(visual(image), dense, rtol=1e-2, atol=1e-2)


# Attention masks.


def attention_by_hand(tower: Tower, block: nn.Module, x: Tensor, bias: Tensor) -> Tensor:
    """x + attention(LayerNorm(x)) of one image `[N, D]` with `bias [H, N, N]`, written out."""
    attention = block.attn
    qkv = block.ln_1(x) @ attention.in_proj_weight.T + attention.in_proj_bias
    q, k, v = (part.unflatten(1, (HEADS, -1)).transpose(0, 1) for part in qkv.chunk(3, dim=1))
    weights = (q @ k.transpose(1, 2) / (WIDTH // HEADS) ** 0.5 + bias).softmax(dim=2)
    return x + attention.out_proj((weights @ v).transpose(0, 1).flatten(1))


def additive(mask: Tensor, kind: str) -> Tensor:
    """What a block of that kind adds to its logits: open_clip's plain blocks make numbers of True and False."""
    if mask.dtype == torch.bool and kind == "custom":
        return torch.zeros(mask.shape).masked_fill(mask, -float("inf"))
    return mask.float()


# With what changes how tokens come together, and how attention counts them.
WITH_FIELDS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, SMALL[name]) for name in INSIDE},
    "tome, each token once": ("tome", {"r": 3, "prop_attn": "off"}),
    "tome, r from a list": ("tome", {"r": (5, 0, 3)}),
    "pitome, each as often as it is merged": ("pitome", {"r": 3, "prop_attn": "on"}),
    "pitome, by ratio": ("pitome", {"ratio": 0.8}),
    "evit, summed": ("evit", {**SMALL["evit"], "fusion": "sum"}),
    "tofu, merging throughout": ("tofu", {"r": 3, "pruned_share": 0.0}),
}


@pytest.mark.parametrize("positional", [False, True], ids=["keyword", "positional"])
@pytest.mark.parametrize(("case", "way"), across(CASES, WITH_FIELDS, kinds=("coarse", "evit", "tome")))
@torch.no_grad()
def test_a_mask_stays_with_its_tokens_inside_blocks(way: str, case: str, positional: bool) -> None:
    kind, mask = CASES[case]
    visual = make_visual(block_type="custom" if kind == "custom" else "default")
    if kind == "tokens first":
        tokens_first(visual)
    tower, x = find_tower(visual), residual(BATCH, TOKENS)

    strategy, fields = WITH_FIELDS[way]
    with anchorprune.prune(visual, strategy, **fields) as pruning:
        y = x
        for block in tower.blocks:
            if not positional:
                y = tower.tokens(block(tower.tokens(y), attn_mask=mask))
            else:  # as open_clip itself calls a block under gradient checkpointing
                before = () if kind == "custom" else (None, None)
                y = tower.tokens(block(tower.tokens(y), *before, mask))

    for image in range(BATCH):
        now, sizes, kept = x[image], [1.0] * TOKENS, torch.arange(TOKENS)
        for number, block in enumerate(tower.blocks, 1):
            bias = additive(by_hand(mask, kept.expand(BATCH, -1), image), kind)
            if pruning.strategy.size_weight:
                bias = bias + pruning.strategy.size_weight * torch.tensor(sizes).log()
            now = attention_by_hand(tower, block, now, bias)
            if (plan := pruning.record.plans.get(number)) is not None:
                own, weights = read(plan, image), sizes
                if plan.shares is not None:
                    rows, sizes = naive.transform(now.tolist(), sizes, plan.shares[image].tolist())
                    now, kept = torch.tensor(rows), kept[own.keep]
                    now = now + block.mlp(block.ln_2(now))
                    continue
                if plan.weights is not None:
                    weights = plan.weights[image].tolist()
                merged = [sizes[i] + sum(sizes[j] for j, to in own.goes_into.items() if to == i) for i in own.keep]
                sizes = merged if plan.sizes is None else plan.sizes[image].tolist()
                now = torch.tensor(naive.merge(now.tolist(), weights, own, plan.averaged, plan.at_length))
                kept = kept[own.keep]
            now = now + block.mlp(block.ln_2(now))
        now = now[: y.shape[1]]  # thin ends with the prefix alone
        torch.testing.assert_close(y[image], now, rtol=1e-3, atol=1e-3)


# Sizes.


@torch.no_grad()
def test_a_strategy_is_told_the_sizes_of_tokens_that_were_merged_blocks_ago(images: Tensor) -> None:
    told: dict[float, Tensor | None] = {}
    plan = Evit.plan

    def listening(self: Evit, tokens: Tokens, keep_patches: int) -> TokenPlan:
        told[tokens.depth * LAYERS] = tokens.sizes
        return plan(self, tokens, keep_patches)

    visual = make_visual()
    with (
        patch.object(Evit, "plan", listening),
        anchorprune.prune(visual, "evit", prune_layers=(1, 4), keep_patches=(8, 4)),
    ):
        visual(images)
    assert told[1] is None
    assert told[4] is not None
    assert told[4].sum(dim=1).tolist() == [TOKENS] * len(images)
    assert (told[4].amax(dim=1) == 9).all()  # the token that stands for 9 of the 16 patches


@torch.no_grad()
def test_tokens_that_get_no_attention_at_all_stay_numbers() -> None:
    # CLS looks at itself alone, so hard that float32 has no number for what is left over for the patches.
    x, k = residual(2, TOKENS), torch.zeros(2, 1, TOKENS, 4)
    k[:, :, 0], q = 40.0, torch.full((2, 1, TOKENS, 4), 40.0)
    assert (cls_attention(q, k)[:, 1:] == 0).all()
    plan = make_strategy("evit").plan(Tokens(x, 1, lambda: (q, k)), 6)
    merged, _ = anchorprune.tokens.merge_tokens(x, None, plan)
    assert merged.isfinite().all()


# Cost.


@every_strategy
def test_along_the_budgets_the_cost_never_rises(strategy: str) -> None:
    visual, fields = make_visual(), dict(SMALL[strategy])
    if issubclass(registry()[strategy], StepwiseStrategy):
        fields["prune_layers"] = (2, 3, 4)
    budgets = make_strategy(strategy, **fields).budgets(TOKENS - 1, LAYERS)
    costs = [gmacs(visual, budget) for budget in budgets]
    rises = [i for i in range(2, len(costs)) if costs[i] > costs[i - 1]]  # the first drops and selects nothing
    # Choosing has its price: of `coarse`, a budget that is the first to drop patches in one more block may cost more.
    assert not rises or strategy == "coarse"
    assert all(blocks_that_drop(budgets[i]) > blocks_that_drop(budgets[i - 1]) for i in rises)
    assert costs[-1] < gmacs(visual, budgets[0])
    patches = [min(budget.schedule(TOKENS - 1, LAYERS).values(), default=TOKENS) for budget in budgets]
    assert patches == sorted(patches, reverse=True)


def blocks_that_drop(strategy: Strategy) -> int:
    counts = strategy.schedule(TOKENS - 1, LAYERS)
    return len({count for block, count in counts.items() if block} - {counts.get(0, TOKENS - 1)})


@every_strategy
def test_a_target_is_met_by_the_largest_budget_that_fits_it(strategy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    visual, smallest = make_visual(), make_strategy(strategy, **SMALL[strategy])
    budgets = smallest.budgets(TOKENS - 1, LAYERS)
    costs = [gmacs(visual, budget) for budget in budgets]
    known = dict(zip(budgets, costs, strict=True))
    monkeypatch.setattr("anchorprune.pruning.budget.gmacs", lambda model, budget: known[budget])  # asked for often
    dense = costs[0]
    for target in {cost * 1.0001 for cost in costs if cost * 1.0001 < dense}:
        expected = next(budget for budget, cost in zip(budgets, costs, strict=True) if cost <= target)
        assert solve(visual, smallest, target) == expected


def test_the_block_that_a_tower_does_not_have_is_named() -> None:
    for name in INSIDE:
        if issubclass(registry()[name], StepwiseStrategy):
            with pytest.raises(UserError, match=r"prune_layers=9: this tower has blocks 1 … 4"):
                anchorprune.prune(make_visual(), replace(make_strategy(name), prune_layers=(2, 9)))
