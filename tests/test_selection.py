"""`select_tokens_by_pruning` does what the description's formulas say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import naive

import anchorprune
from anchorprune import UserError, select_tokens_by_pruning


@st.composite
def problems(draw: st.DrawFn) -> dict:
    """Shapes, budget and fields of one call."""
    prefix, patches = draw(st.integers(0, 3)), draw(st.integers(2, 20))
    k_anchors = draw(st.integers(1, patches))
    return {
        "batch": draw(st.integers(1, 3)),
        "tokens": prefix + patches,
        "heads": draw(st.integers(1, 3)),
        "head_width": draw(st.sampled_from([1, 4, 16])),
        "k_anchors": k_anchors,
        "top_m": draw(st.integers(0, patches - k_anchors)),
        "alpha": draw(st.sampled_from([0.0, 0.3, 0.5, 1.0])),
        "num_prefix_tokens": prefix,
        "score_norm": draw(st.sampled_from(["none", "minmax"])),
        "importance": draw(st.sampled_from(["to_anchors", "from_anchors"])),
        "seed": draw(st.integers(0, 2**31)),
    }


def tensors(problem: dict, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(problem["seed"])
    b, n, h, d = (problem[name] for name in ("batch", "tokens", "heads", "head_width"))
    x = torch.randn(b, n, h * d + 1, generator=generator, dtype=dtype)
    q, k = torch.randn(2, b, h, n, d, generator=generator, dtype=dtype)
    return x, q, k


def fields(problem: dict) -> dict:
    names = ("k_anchors", "top_m", "alpha", "num_prefix_tokens", "score_norm", "importance")
    return {name: problem[name] for name in names}


def expected(x: torch.Tensor, q: torch.Tensor, k: torch.Tensor, problem: dict) -> list[list[int]]:
    return [naive.select(x[i], q[i], k[i], *fields(problem).values()) for i in range(len(x))]


@settings(max_examples=300, deadline=None)
@given(problems())
def test_it_keeps_what_a_naive_loop_over_the_formulas_keeps(problem: dict) -> None:
    x, q, k = tensors(problem)
    kept = select_tokens_by_pruning(x, q, k, **fields(problem))
    assert kept.tolist() == expected(x, q, k, problem)


@settings(max_examples=150, deadline=None)
@given(problems(), st.integers(1, 4))
def test_ties_go_to_the_lower_index(problem: dict, distinct: int) -> None:
    # Every token is one of a few; multiples of a quarter, so that products are exact and equal tokens score equally.
    x, q, k = (t.mul(2).round() / 2 + 0.25 for t in tensors(problem))
    copies = torch.arange(problem["tokens"]) % distinct
    x, q, k = x[:, copies], q[:, :, copies], k[:, :, copies]
    kept = select_tokens_by_pruning(x, q, k, **fields(problem))
    assert kept.tolist() == expected(x, q, k, problem)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_the_prefix_survives_and_indices_ascend_and_are_as_many_as_promised(problem: dict) -> None:
    x, q, k = tensors(problem, torch.float32)
    kept = select_tokens_by_pruning(x, q, k, **fields(problem))
    prefix = problem["num_prefix_tokens"]
    assert kept.shape == (problem["batch"], prefix + problem["k_anchors"] + problem["top_m"])
    assert kept.dtype == torch.int64
    assert (kept[:, :prefix] == torch.arange(prefix)).all()
    assert (kept.diff(dim=1) > 0).all()
    assert kept.max() < problem["tokens"]


@settings(max_examples=100, deadline=None)
@given(problems())
def test_each_image_is_chosen_for_on_its_own(problem: dict) -> None:
    x, q, k = tensors(problem)
    together = select_tokens_by_pruning(x, q, k, **fields(problem))
    for i in range(len(x)):
        alone = select_tokens_by_pruning(x[i : i + 1], q[i : i + 1], k[i : i + 1], **fields(problem))
        assert torch.equal(together[i], alone[0])


def test_autocast_does_not_change_the_choice() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 60, 64, generator=generator)
    q, k = torch.randn(2, 4, 4, 60, 16, generator=generator)
    budget = {"k_anchors": 5, "top_m": 20, "alpha": 0.5}
    exact = select_tokens_by_pruning(x, q, k, **budget)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(select_tokens_by_pruning(x, q, k, **budget), exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_scored_in_float32(dtype: torch.dtype) -> None:
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 60, 64, generator=generator).to(dtype)
        q, k = torch.randn(2, 2, 4, 60, 16, generator=generator).to(dtype)
        budget = {"k_anchors": 5, "top_m": 20, "alpha": 0.5, "score_norm": "minmax"}
        expected = select_tokens_by_pruning(x.float(), q.float(), k.float(), **budget)
        assert torch.equal(select_tokens_by_pruning(x, q, k, **budget), expected)


def test_alpha_one_ranks_by_importance_alone_and_alpha_zero_by_diversity_alone() -> None:
    x, q, k = tensors({"batch": 1, "tokens": 30, "heads": 2, "head_width": 8, "seed": 5})
    budget = {"k_anchors": 3, "top_m": 6}
    other_x, other_q = torch.randn_like(x), torch.randn_like(q)
    assert torch.equal(
        select_tokens_by_pruning(x, q, k, alpha=1.0, **budget),
        select_tokens_by_pruning(other_x, q, k, alpha=1.0, **budget),
    )
    other_q[:, :, 0] = q[:, :, 0]  # the CLS query chooses the anchors
    assert torch.equal(
        select_tokens_by_pruning(x, q, k, alpha=0.0, **budget),
        select_tokens_by_pruning(x, other_q, k, alpha=0.0, **budget),
    )


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"k_anchors": 0}, "k_anchors=0"),
        ({"top_m": -1}, "top_m=-1"),
        ({"alpha": 1.5}, "alpha=1.5"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"score_norm": "softmax"}, "score_norm='softmax'"),
        ({"importance": "anchors"}, "importance='anchors'"),
        ({"k_anchors": 5, "top_m": 5}, "only|more than the 9 patch tokens"),
    ],
)
def test_a_value_outside_its_range_is_named(wrong: dict, names: str) -> None:
    x, q, k = tensors({"batch": 1, "tokens": 10, "heads": 1, "head_width": 4, "seed": 0})
    with pytest.raises(UserError, match=names):
        select_tokens_by_pruning(x, q, k, **({"k_anchors": 2, "top_m": 3, "alpha": 0.5} | wrong))


def test_the_public_names_are_the_described_ones() -> None:
    for name in ("apply_pruning_to_model", "select_tokens_by_pruning", "get_vision_attention", "prune"):
        assert callable(getattr(anchorprune, name))
    with pytest.raises(AttributeError, match="prun"):
        anchorprune.prun  # noqa: B018
