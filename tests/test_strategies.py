"""The strategies from the literature plan what naive loops over their papers' formulas plan."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive_strategies as naive
from torch import Tensor

from anchorprune.strategies import make_strategy, standalone
from anchorprune.strategies.base import Strategy
from anchorprune.strategies.max_min import distances, farthest_points
from anchorprune.strategies.pitome import energy
from anchorprune.strategies.zero_tprune import page_rank
from anchorprune.tokens import TokenPlan, Tokens, head_attention, merge_tokens

MERGING = ["tome", "pitome"]
HALVES_AT_MOST = [*MERGING, "rapid_like", "tofu"]
BLOCKS = 12  # of the towers that these tokens would be from
# What is not a strategy with the fields that it has when none is given.
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "evit, summed": ("evit", {"fusion": "sum"}),
    "max_min of tokens": ("max_min", {"metric": "tokens"}),
    "pitome at margin 0": ("pitome", {"margin": 0.0}),
    "pitome as for CLIP": ("pitome", {"margin": 0.95, "unprotected_share": 0, "metric": "tokens"}),
    "tofu, merging throughout": ("tofu", {"pruned_share": 0.0}),
    "zero_tprune, few heads": (
        "zero_tprune",
        {"rank_rounds": (2, 2, 2), "similar_share": 0.8, "min_head_variance": 0.2, "max_head_variance": 0.3},
    ),
}
# What each paper's own loop needs of one image: x `[N, D]`, q and k `[H, N, d]`, prefix, count, depth.
ORACLES: dict[str, Callable[[Tensor, Tensor, Tensor, int, int, float], naive.Plan]] = {
    "cls_attention": lambda x, q, k, prefix, count, depth: naive.cls_attention(q, k, prefix, count),
    "coarse": lambda x, q, k, prefix, count, depth: naive.coarse(q, k, prefix, count, depth),
    "evit": lambda x, q, k, prefix, count, depth: naive.evit(q, k, prefix, count),
    "evit, summed": lambda x, q, k, prefix, count, depth: naive.evit(q, k, prefix, count),
    "max_min": lambda x, q, k, prefix, count, depth: max_min(list(naive.key_means(k, prefix).values()), prefix, count),
    "max_min of tokens": lambda x, q, k, prefix, count, depth: max_min(x[prefix:].double().tolist(), prefix, count),
    "pitome": lambda x, q, k, prefix, count, depth: pitome(naive.key_means(k, prefix), prefix, count, depth, 0.75, 0.5),
    "pitome at margin 0": lambda x, q, k, prefix, count, depth: pitome(
        naive.key_means(k, prefix), prefix, count, depth, 0.0, 0.5
    ),
    "pitome as for CLIP": lambda x, q, k, prefix, count, depth: pitome(
        dict(enumerate(x[prefix:].double().tolist(), prefix)), prefix, count, depth, 0.95, 0.0
    ),
    "rapid_like": lambda x, q, k, prefix, count, depth: naive.rapid_like(q, k, prefix, count, depth, 0.5, 1.0),
    "thin": lambda x, q, k, prefix, count, depth: naive.thin(k, prefix, count),
    "token_transforming": lambda x, q, k, prefix, count, depth: naive.token_transforming(q, k, prefix, count),
    "tofu": lambda x, q, k, prefix, count, depth: naive.tofu(k, prefix, count, depth, 0.5),
    "tofu, merging throughout": lambda x, q, k, prefix, count, depth: naive.tofu(k, prefix, count, depth, 0.0),
    "tome": lambda x, q, k, prefix, count, depth: naive.tome(k, prefix, count),
    "zero_tprune": lambda x, q, k, prefix, count, depth: zero_tprune(q, k, prefix, count, depth),
    "zero_tprune, few heads": lambda x, q, k, prefix, count, depth: naive.zero_tprune(
        q, k, prefix, count, 2, 0.8, 0.2, 0.3
    ),
}
every_paper = pytest.mark.parametrize("name", ORACLES)


def max_min(rows: list[list[float]], prefix: int, count: int) -> naive.Plan:
    chosen = naive.farthest_points(naive.cosine_distances(rows), count)
    return naive.Plan(sorted([*range(prefix), *(prefix + i for i in chosen)]))


def pitome(
    rows: dict[int, list[float]], prefix: int, count: int, depth: float, margin: float, unprotected: float
) -> naive.Plan:
    return naive.pitome(rows, prefix + len(rows), count, round(depth * BLOCKS), BLOCKS, margin, unprotected)


def zero_tprune(q: Tensor, k: Tensor, prefix: int, count: int, depth: float) -> naive.Plan:
    return naive.zero_tprune(q, k, prefix, count, 30 if depth <= 0.25 else 1 if depth > 0.75 else 5, 0.3)


def make(name: str) -> Strategy:
    strategy, fields = VARIANTS.get(name, (name, {}))
    return make_strategy(strategy, **fields)


def kind(name: str) -> str:
    return VARIANTS.get(name, (name, {}))[0]


@st.composite
def problems(draw: st.DrawFn) -> dict:
    """Shapes, and how many patches go on; `keep` halves at most, which is what merging can do."""
    patches = draw(st.integers(2, 14))
    return {
        "batch": draw(st.integers(1, 3)),
        "prefix": draw(st.integers(1, 3)),
        "patches": patches,
        "heads": draw(st.integers(1, 3)),
        "head_width": draw(st.sampled_from([2, 5, 8])),
        "keep": draw(st.integers(1, patches - 1)),
        "depth": draw(st.sampled_from([1 / 12, 0.25, 0.5, 1.0])),
        "seed": draw(st.integers(0, 2**31)),
    }


def budget(name: str, problem: dict) -> int:
    """Patches that go on: a merge keeps at least half of them."""
    return max(problem["keep"], -(-problem["patches"] // 2)) if kind(name) in HALVES_AT_MOST else problem["keep"]


def tokens(problem: dict, dtype: torch.dtype = torch.float64) -> Tokens:
    generator = torch.Generator().manual_seed(problem["seed"])
    b, h, d = problem["batch"], problem["heads"], problem["head_width"]
    n = problem["prefix"] + problem["patches"]
    x = torch.randn(b, n, h * d + 1, generator=generator, dtype=dtype)
    q, k = torch.randn(2, b, h, n, d, generator=generator, dtype=dtype)
    return Tokens(x, problem["prefix"], lambda: (q, k), depth=problem["depth"], num_blocks=BLOCKS)


def plan_of(name: str, problem: dict, seen: Tokens) -> TokenPlan:
    return make(name).plan(seen, budget(name, problem))


def read(plan: TokenPlan, image: int) -> naive.Plan:
    """The plan for one image, as the oracles write it."""
    if plan.merged is None:
        return naive.Plan(plan.keep[image].tolist())
    return naive.Plan(
        plan.keep[image].tolist(), dict(zip(plan.merged[image].tolist(), plan.into[image].tolist(), strict=True))
    )


def expected(name: str, problem: dict, seen: Tokens) -> list[naive.Plan]:
    q, k = seen.query_key()
    count = budget(name, problem)
    arguments = (problem["prefix"], count, problem["depth"])
    return [ORACLES[name](seen.x[i], q[i], k[i], *arguments) for i in range(len(q))]


def test_every_strategy_has_an_oracle() -> None:
    elsewhere = {"anchor", "random", "vwt_intra"}  # test_selection.py, test_pruning.py, test_pixels.py
    assert {kind(name) for name in ORACLES} | elsewhere == set(standalone())


@every_paper
@settings(max_examples=60, deadline=None)
@given(problem=problems())
def test_it_plans_what_a_naive_loop_over_the_paper_plans(name: str, problem: dict) -> None:
    seen = tokens(problem)
    plan = plan_of(name, problem, seen)
    assert [read(plan, i) for i in range(problem["batch"])] == expected(name, problem, seen)


# At margin 0 such energies are whole numbers over n, and equal whatever the order of the sum.
@pytest.mark.parametrize("name", [name for name in ORACLES if name not in ("pitome", "pitome as for CLIP")])
@settings(max_examples=60, deadline=None)
@given(problem=problems(), distinct=st.integers(1, 5))
def test_among_equal_patches_the_first_is_taken(name: str, problem: dict, distinct: int) -> None:
    # Patches lie on the axes, each on one of a few, so that every cosine is exactly 0 or 1; CLS looks at the first.
    problem |= {"head_width": 5, "depth": 1.0}
    n = problem["prefix"] + problem["patches"]
    axes = torch.eye(5, dtype=torch.float64)[torch.arange(n) % distinct].expand(problem["batch"], n, 5)
    k = axes.unsqueeze(1).expand(-1, problem["heads"], -1, -1)
    seen = Tokens(axes, problem["prefix"], lambda: (k[:, :, :1].expand_as(k), k), depth=1.0, num_blocks=BLOCKS)
    plan = plan_of(name, problem, seen)
    assert [read(plan, i) for i in range(problem["batch"])] == expected(name, problem, seen)


@every_paper
@settings(max_examples=40, deadline=None)
@given(problem=problems())
def test_the_prefix_survives_and_indices_ascend_and_are_as_many_as_promised(name: str, problem: dict) -> None:
    plan = plan_of(name, problem, tokens(problem, torch.float32))
    prefix, n = problem["prefix"], problem["prefix"] + problem["patches"]
    assert plan.keep.shape == (problem["batch"], prefix + budget(name, problem))
    assert plan.keep.dtype == torch.int64
    assert (plan.keep[:, :prefix] == torch.arange(prefix)).all()
    assert (plan.keep.diff(dim=1) > 0).all()
    assert plan.keep.max() < n
    for image in range(problem["batch"] if plan.merged is not None else 0):
        kept, merged = set(plan.keep[image].tolist()), plan.merged[image].tolist()
        assert sorted([*kept, *merged]) == list(range(n))  # nobody is dropped, nobody is in two places
        assert kept - set(range(prefix)) >= set(plan.into[image].tolist())  # a patch becomes part of a patch


@every_paper
@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_each_image_is_planned_for_on_its_own(name: str, problem: dict) -> None:
    seen = tokens(problem)
    q, k = seen.query_key()
    together = plan_of(name, problem, seen)
    for i in range(problem["batch"]):
        one = Tokens(
            seen.x[i : i + 1],
            seen.num_prefix_tokens,
            lambda i=i: (q[i : i + 1], k[i : i + 1]),
            depth=seen.depth,
            num_blocks=BLOCKS,
        )
        assert read(plan_of(name, problem, one), 0) == read(together, i)


@every_paper
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32_under_autocast_too(name: str, dtype: torch.dtype) -> None:
    for seed in range(10):
        problem = {"batch": 2, "prefix": 1, "patches": 40, "heads": 4, "head_width": 16, "keep": 20, "depth": 0.5}
        seen = tokens(problem | {"seed": seed}, torch.float32)
        x, q, k = (t.to(dtype) for t in (seen.x, *seen.query_key()))
        half = Tokens(x, 1, lambda q=q, k=k: (q, k), depth=0.5, num_blocks=BLOCKS)
        exact = Tokens(x.float(), 1, lambda q=q, k=k: (q.float(), k.float()), depth=0.5, num_blocks=BLOCKS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plan = plan_of(name, problem, half)
        assert [read(plan, i) for i in range(2)] == [read(plan_of(name, problem, exact), i) for i in range(2)]


# Farthest points.


@settings(max_examples=80, deadline=None)
@given(st.integers(3, 8), st.integers(2, 5), st.integers(1, 3), st.integers(0, 2**31))
def test_the_greedy_choice_is_half_as_spread_as_the_best_one_at_least(
    n: int, count: int, width: int, seed: int
) -> None:
    count = min(count, n)
    points = torch.randn(1, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distance = torch.cdist(points, points)
    chosen = farthest_points(distance, count)[0].tolist()
    assert len(set(chosen)) == count
    numbers = distance[0].tolist()
    assert naive.spread(numbers, chosen) >= naive.best_spread(numbers, count) / 2 - 1e-9


@settings(max_examples=80, deadline=None)
@given(st.integers(3, 8), st.integers(2, 5), st.integers(2, 3), st.integers(0, 2**31))
def test_by_cosine_that_holds_of_the_angles(n: int, count: int, width: int, seed: int) -> None:
    # 1 − cosine is no metric; the angle is, and orders alike, so that the greedy choice is the same.
    count = min(count, n)
    rows = torch.randn(1, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distance = distances(torch.nn.functional.normalize(rows, dim=-1))
    chosen = farthest_points(distance, count)[0].tolist()
    numbers = (1 - distance[0]).clamp(-1, 1).acos().tolist()
    assert naive.spread(numbers, chosen) >= naive.best_spread(numbers, count) / 2 - 1e-6


# Zero-TPrune's PageRank.


@pytest.mark.parametrize("cls", [True, False])
@settings(max_examples=20, deadline=None)
@given(problem=problems(), rounds=st.integers(1, 4))
def test_scores_after_rounds_of_votes_are_algorithm_1(problem: dict, rounds: int, cls: bool) -> None:
    graph = head_attention(*tokens(problem).query_key())
    ours = page_rank(graph, rounds, cls)
    theirs = [[naive.page_rank(a, rounds, cls) for a in heads] for heads in graph.tolist()]
    torch.testing.assert_close(ours, torch.tensor(theirs, dtype=torch.float64))


def test_after_many_rounds_where_votes_began_does_not_matter() -> None:
    graph = head_attention(*torch.randn(2, 1, 2, 9, 4, generator=torch.Generator().manual_seed(0)).double())
    torch.testing.assert_close(page_rank(graph, 60, cls=True), page_rank(graph, 60, cls=False))


# PiToMe's energy.


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0, 0.9))
def test_the_energy_is_equation_4(problem: dict, margin: float) -> None:
    _, k = tokens(problem).query_key()
    for keys in k:
        mean = naive.key_means(keys, 0)
        directions = torch.nn.functional.normalize(torch.tensor(list(mean.values()), dtype=torch.float64), dim=-1)
        ours = energy((directions @ directions.T).unsqueeze(0), margin)[0]
        theirs = torch.tensor(list(naive.pitome_energy(mean, margin).values()), dtype=torch.float64)
        torch.testing.assert_close(ours, theirs)


def test_a_patch_unlike_all_others_has_the_lowest_energy_and_is_never_merged() -> None:
    generator = torch.Generator().manual_seed(0)
    k = torch.eye(8)[0].repeat(1, 1, 13, 1) + 0.05 * torch.randn(1, 1, 13, 8, generator=generator)
    k[:, :, 5] = torch.eye(8)[1]
    for block, keep in itertools.product(range(7, 13), range(7, 12)):
        seen = Tokens(k[:, 0], 1, lambda: (k, k), depth=block / BLOCKS, num_blocks=BLOCKS)
        plan = make_strategy("pitome").plan(seen, keep)
        assert 5 in plan.keep
        assert 5 not in plan.into


# Merging.


@every_paper
@settings(max_examples=40, deadline=None)
@given(problem=problems(), known_sizes=st.booleans())
def test_merged_tokens_are_the_weighted_means_that_a_loop_computes(name: str, problem: dict, known_sizes: bool) -> None:
    seen = tokens(problem)
    n = seen.x.shape[1]
    sizes = torch.randint(1, 6, (problem["batch"], n)).double() if known_sizes else None
    plan = plan_of(name, problem, seen)
    merged, after = merge_tokens(seen.x, sizes, plan)
    for i in range(problem["batch"]):
        own_size = [1.0] * n if sizes is None else sizes[i].tolist()
        weights = own_size
        own = read(plan, i)
        if kind(name) == "token_transforming":
            matrix = naive.transformation(seen.query_key()[1][i], problem["prefix"], own.keep, 0.1)
            torch.testing.assert_close(plan.shares[i], torch.tensor(matrix, dtype=torch.float64))
            theirs, their_sizes = naive.transform(seen.x[i].tolist(), own_size, matrix)
            torch.testing.assert_close(merged[i], torch.tensor(theirs, dtype=torch.float64))
            torch.testing.assert_close(after[i], torch.tensor(their_sizes, dtype=torch.float64))
            continue
        if kind(name) == "evit":
            q, k = seen.query_key()
            scores = naive.cls_scores(q[i], k[i], problem["prefix"])
            fused = {*own.goes_into, *own.goes_into.values()}
            weights = [scores[j] if j in fused else 1.0 for j in range(n)]
        ways = {"averaged": name != "evit, summed", "at_length": kind(name) == "tofu"}
        theirs = naive.merge(seen.x[i].tolist(), weights, own, **ways)
        torch.testing.assert_close(merged[i], torch.tensor(theirs, dtype=torch.float64))
        if after is None:
            assert sizes is None
            assert plan.merged is None
        elif plan.merged is not None:
            assert after[i].sum() == sum(own_size)


@pytest.mark.parametrize("name", MERGING)
@settings(max_examples=60, deadline=None)
@given(problem=problems(), blocks=st.integers(1, 4), r=st.integers(1, 6))
def test_after_any_number_of_blocks_a_token_is_the_mean_of_the_tokens_that_it_is_made_of(
    name: str, problem: dict, blocks: int, r: int
) -> None:
    strategy, first = make_strategy(name, r=r), tokens(problem)
    x, sizes, prefix = first.x, None, problem["prefix"]
    n = x.shape[1]
    members = [[[j] for j in range(n)] for _ in x]
    for block, keep in strategy.schedule(problem["patches"], blocks).items():
        if keep == x.shape[1] - prefix:
            continue
        q, k = torch.randn(2, *x.shape[:1], 2, x.shape[1], 4, dtype=torch.float64)
        seen = Tokens(x, prefix, lambda q=q, k=k: (q, k), sizes, block / blocks, num_blocks=blocks)
        plan = strategy.plan(seen, keep)
        x, sizes = merge_tokens(x, sizes, plan)
        for i in range(len(members)):
            now = read(plan, i)
            for away, host in now.goes_into.items():
                members[i][host] += members[i][away]
            members[i] = [members[i][j] for j in now.keep]
    if sizes is None:
        return  # one patch: nothing can be merged
    assert (sizes.sum(dim=1) == n).all()
    torch.testing.assert_close((x * sizes.unsqueeze(2)).sum(dim=1), first.x.sum(dim=1))
    for i in range(len(members)):
        assert sizes[i].tolist() == [len(own) for own in members[i]]
        torch.testing.assert_close(x[i], torch.stack([first.x[i, own].mean(dim=0) for own in members[i]]))


@settings(max_examples=30, deadline=None)
@given(problem=problems())
def test_sharing_out_conserves_the_sum_of_tokens_and_of_sizes(problem: dict) -> None:
    seen = tokens(problem)
    sizes = torch.rand(seen.x.shape[:2], dtype=torch.float64) + 0.5
    merged, after = merge_tokens(seen.x, sizes, plan_of("token_transforming", problem, seen))
    torch.testing.assert_close(after.sum(dim=1), sizes.sum(dim=1))
    torch.testing.assert_close((after.unsqueeze(2) * merged).sum(dim=1), (sizes.unsqueeze(2) * seen.x).sum(dim=1))
    torch.testing.assert_close(merged[:, : problem["prefix"]], seen.x[:, : problem["prefix"]])
    same = torch.ones_like(seen.x)
    alike, _ = merge_tokens(same, sizes, plan_of("token_transforming", problem, seen))
    torch.testing.assert_close(alike, torch.ones_like(merged))


def test_an_average_at_length_is_as_long_as_the_longest_in_it_and_of_copies_what_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    x[:, 4] = x[:, 3]
    plan = TokenPlan(
        torch.tensor([[0, 1, 3]] * 2),
        merged=torch.tensor([[2, 4]] * 2),
        into=torch.tensor([[1, 3]] * 2),
        at_length=True,
    )
    merged, sizes = merge_tokens(x, None, plan)
    assert torch.equal(merged[:, 0], x[:, 0])
    torch.testing.assert_close(merged[:, 1].norm(dim=1), x[:, 1:3].norm(dim=2).amax(dim=1))
    torch.testing.assert_close(merged[:, 2], x[:, 3])
    assert sizes.tolist() == [[1, 2, 2]] * 2
    opposite, _ = merge_tokens(torch.cat([x[:, :2], -x[:, 1:2], x[:, 3:]], dim=1), None, plan)
    assert opposite.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_tokens_are_averaged_in_float32(dtype: torch.dtype) -> None:
    # 600 tokens of 1 and one of 1025 average to 2.7; summed in half precision they would not.
    x = torch.ones(1, 601, 1).to(dtype)
    x[0, 600] = 1024
    plan = TokenPlan(torch.tensor([[0]]), merged=torch.arange(1, 601)[None], into=torch.zeros(1, 600, dtype=torch.long))
    mean, sizes = merge_tokens(x, None, plan)
    assert mean.dtype == dtype
    assert mean.item() == pytest.approx((600 + 1024) / 601, rel=1e-2)
    assert sizes.tolist() == [[601]]
