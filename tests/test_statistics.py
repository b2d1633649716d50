"""How sure an accuracy is, and a difference of two: against published numbers, SciPy and enumeration."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from anchorprune.evaluation.statistics import Z95, Difference, bootstrap_difference, mcnemar, paired_difference, wilson

# --- intervals


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [  # R: prop.test(hits, n, correct = FALSE)$conf.int
        (0, 10, 0.0, 0.2775328),
        (10, 10, 0.7224672, 1.0),
        (5, 10, 0.2365931, 0.7634069),
        (81, 263, 0.2552740, 0.3662036),  # Newcombe 1998, table I
        (15, 148, 0.0624, 0.1605),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_wilson_interval_is_the_published_one(hits: int, n: int, low: float, high: float) -> None:
    assert wilson(hits / n, n) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_wilson_interval_holds_the_shares_that_the_score_test_accepts(case: tuple[int, int]) -> None:
    hits, n = case
    share = hits / n
    low, high = wilson(share, n)
    assert 0 <= low <= share + 1e-12
    assert share - 1e-12 <= high <= 1

    def accepted(p: float) -> bool:
        return abs(share - p) <= Z95 * math.sqrt(p * (1 - p) / n) + 1e-9

    for p in [i / 200 for i in range(1, 200)]:
        if min(abs(p - low), abs(p - high)) > 1e-6:
            assert accepted(p) == (low < p < high)


def test_an_impossible_share_has_no_interval() -> None:
    for share, n in ((0.5, 0), (1.2, 10), (-0.1, 10), (math.nan, 10)):
        with pytest.raises(ValueError, match="no interval"):
            wilson(share, n)


def test_a_paired_difference_leaves_out_how_hard_the_images_are() -> None:
    """McNemar's setting: 10 images one way, 2 the other; the 88 others say nothing, however hard they are."""
    a = [1.0] * 50 + [0.0] * 38 + [1.0] * 10 + [0.0] * 2
    b = [1.0] * 50 + [0.0] * 38 + [0.0] * 10 + [1.0] * 2
    found = paired_difference(a, b)
    deviation = math.sqrt((12 - 100 * 0.08**2) / 99)
    assert found.value == pytest.approx(0.08)
    assert found.high - found.value == pytest.approx(1.96 * deviation / 10, rel=1e-3)
    assert found.sign == 1
    assert paired_difference(b, a).sign == -1
    assert paired_difference(a, a) == Difference(0, 0, 0)
    assert paired_difference(a, a).sign == 0


# --- the bootstrap


def outcomes(only_a: int, only_b: int, both: int = 0, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Right or wrong of a and of b, image by image, in no order."""
    pairs = np.repeat([[1, 0], [0, 1], [1, 1], [0, 0]], [only_a, only_b, both, neither], axis=0)
    np.random.default_rng(0).shuffle(pairs)
    return pairs[:, 0], pairs[:, 1]


@pytest.mark.parametrize(
    ("only_a", "only_b", "both", "neither"),
    [(10, 2, 50, 38), (801, 29, 849, 321), (5, 5, 5, 5), (300, 280, 20000, 20000)],
)
def test_the_bootstraps_interval_is_scipys(only_a: int, only_b: int, both: int, neither: int) -> None:
    a, b = outcomes(only_a, only_b, both, neither)
    n = len(a)
    theirs = scipy.stats.bootstrap(
        (a - b,), np.mean, method="percentile", n_resamples=4000, batch=100, rng=np.random.default_rng(1)
    ).confidence_interval
    ours = bootstrap_difference(a, b)
    assert ours.value == (only_a - only_b) / n
    # An end found by 10,000 and one by 4,000 resamples differ by some 0.05 standard errors, or by an image.
    slack = max(1.01 / n, 0.2 * np.std(a - b) / n**0.5)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=slack)


@pytest.mark.parametrize(("n", "wins"), [(20, 1), (100, 30), (1000, 999), (50_000, 200)])
def test_where_only_one_is_ever_better_the_ends_are_those_of_a_binomial(n: int, wins: int) -> None:
    """The resampled mean is then Binomial(n, wins / n) / n, whose quantiles are known."""
    found = bootstrap_difference(*outcomes(wins, 0, both=n - wins), resamples=100_000)
    exact = scipy.stats.binom.ppf([0.025, 0.975], n, wins / n)
    assert n * np.array([found.low, found.high]) == pytest.approx(exact, abs=1.01)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(*[st.sampled_from([0, 1 / 3, 0.5, 2 / 3, 1])] * 2), min_size=1, max_size=5))
def test_the_interval_of_means_over_draws_is_that_of_all_resamples_there_are(pairs: list[tuple[float, float]]) -> None:
    a, b = zip(*pairs, strict=True)
    found = bootstrap_difference(a, b, resamples=20_000)
    means = np.sort([sum(drawn) / len(a) for drawn in itertools.product(np.subtract(a, b), repeat=len(a))])

    def between(share: float) -> tuple[float, float]:  # 0.5 % is four standard deviations at 20,000 resamples
        return tuple(np.quantile(means, [share - 0.005, share + 0.005], method="inverted_cdf"))

    for end, (least, most) in ((found.low, between(0.025)), (found.high, between(0.975))):
        assert least - 1e-9 <= end <= most + 1e-9


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60), st.integers(0, 5))
def test_the_interval_is_around_the_difference_and_turns_with_it(pairs: list[tuple[bool, bool]], seed: int) -> None:
    a, b = zip(*pairs, strict=True)
    found = bootstrap_difference(a, b, resamples=500, seed=seed)
    assert found == bootstrap_difference(a, b, resamples=500, seed=seed)
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.value == pytest.approx(paired_difference(a, b).value)
    assert bootstrap_difference(b, a, resamples=500, seed=seed).value == -found.value


def test_the_order_of_the_images_does_not_matter() -> None:
    a, b = outcomes(30, 20, 40, 10)
    order = np.random.default_rng(1).permutation(len(a))
    assert bootstrap_difference(a[order], b[order]) == bootstrap_difference(a, b)


def test_another_seed_moves_the_ends_a_little() -> None:
    a, b = outcomes(300, 200, 400, 100)
    one, two = bootstrap_difference(a, b, seed=0), bootstrap_difference(a, b, seed=1)
    assert one != two
    assert one.low == pytest.approx(two.low, abs=0.004)


def test_on_many_images_it_agrees_with_the_normal_interval() -> None:
    a, b = outcomes(3000, 2800, 20_000, 24_200)
    ours, normal = bootstrap_difference(a, b), paired_difference(a, b)
    assert (ours.low, ours.high) == pytest.approx((normal.low, normal.high), abs=1e-4)


def test_where_no_image_differs_the_interval_has_no_width() -> None:
    assert bootstrap_difference([1, 0, 1], [1, 0, 1]) == Difference(0, 0, 0)


def test_an_interval_on_all_of_imagenet_takes_no_time() -> None:
    a, b = outcomes(12_000, 9_000, 20_000, 9_000)
    start = time.process_time()
    bootstrap_difference(a, b)
    mcnemar(a, b)
    assert time.process_time() - start < 2  # 0.1 s; drawing every image 10,000 times takes 5 s and more


# --- McNemar


def test_mcnemars_p_by_hand() -> None:
    """10 against 2: (1 + 12 + 66) / 4096 in each tail."""
    assert mcnemar(*outcomes(10, 2, 50, 38)) == 2 * 79 / 4096
    assert mcnemar(*outcomes(1, 0, 50, 38)) == 1
    assert mcnemar(*outcomes(6, 0)) == 2 / 64


@given(st.integers(0, 400), st.integers(0, 400), st.integers(1, 9))
def test_mcnemars_p_is_that_of_scipys_binomial_test(only_a: int, only_b: int, rest: int) -> None:
    a, b = outcomes(only_a, only_b, rest)
    expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)
    assert mcnemar(b, a) == mcnemar(a, b)


@pytest.mark.parametrize(("only_a", "only_b"), [(25_000, 25_000), (24_500, 25_500), (20_000, 19_000), (900, 300)])
def test_mcnemars_p_of_tens_of_thousands_of_images(only_a: int, only_b: int) -> None:
    expected = scipy.stats.binomtest(only_a, only_a + only_b).pvalue
    assert mcnemar(*outcomes(only_a, only_b)) == pytest.approx(expected, rel=1e-9)


def test_a_p_below_every_float_is_zero_and_no_error() -> None:
    assert mcnemar(*outcomes(3000, 0)) == 0


def test_images_that_both_or_neither_recognise_say_nothing() -> None:
    assert mcnemar(*outcomes(9, 3, 0, 1)) == mcnemar(*outcomes(9, 3, 1000, 5000))


def test_means_over_draws_are_not_right_or_wrong() -> None:
    with pytest.raises(ValueError, match="right"):
        mcnemar([0.5, 1], [1, 1])


@pytest.mark.parametrize("test", [bootstrap_difference, mcnemar])
@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_what_is_not_paired_has_no_statistics(test: object, a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        test(a, b)  # type: ignore[operator]
