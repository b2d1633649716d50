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

from anchorprune.evaluation.statistics import (
    BOOTSTRAP,
    ENOUGH_DIFFER,
    SCORE,
    Z95,
    bootstrap_difference,
    difference,
    mcnemar,
    predicted,
    tango,
    wilson,
)

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


# --- the score interval of a paired difference


@pytest.mark.parametrize(
    ("gained", "lost", "n", "level", "low", "high", "digits"),
    [
        (1, 7, 21, 0.95, -0.517, -0.026, 3),  # Fagerland, Lydersen and Laake, Stat. Methods Med. Res. 23, 2014, table V
        (6, 16, 161, 0.95, -0.1240, -0.0054, 4),  # R, contingencytables: Tango_asymptotic_score_CI_paired_2x2
        (16, 8, 86, 0.95, -0.020, 0.207, 3),  # Agresti and Min, Stat. Med. 24, 2005, by R's ratesci
        (28, 25, 618, 0.90, -0.0148, 0.0247, 4),  # R, PropCIs: scoreci.mp(25, 28, 618, 0.9)
    ],
)
def test_tangos_interval_is_the_published_one(
    gained: int, lost: int, n: int, level: float, low: float, high: float, digits: int
) -> None:
    found = tango(gained, lost, n, scipy.stats.norm.ppf((1 + level) / 2))
    assert [round(end, digits) for end in found] == [low, high]


@pytest.mark.parametrize("n", [1, 25, 30, 1000])
def test_where_no_image_differs_the_interval_is_wilsons_of_none_in_n(n: int) -> None:
    _, high = wilson(0, n)
    assert tango(0, 0, n) == pytest.approx((-high, high), abs=1e-12)
    assert difference([1] * n, [1] * n) == difference([0.5] * n, [0.5] * n)  # and so for means over draws
    assert difference([1] * n, [1] * n).sign == 0


def test_it_is_within_its_bounds_where_every_image_differs() -> None:
    assert tango(0, 10, 10)[0] == -1
    assert tango(10, 0, 10) == pytest.approx((wilson(1, 10)[0] * 2 - 1, 1), abs=0.1)


def cells(n: int) -> np.ndarray:
    """All there is of (gained, lost, neither)."""
    return np.array([(b, c, n - b - c) for b in range(n + 1) for c in range(n + 1 - b)])


@pytest.mark.parametrize("n", [10, 25, 35])
def test_it_holds_the_truth_as_often_as_it_says_on_few_images(n: int) -> None:
    """All outcomes, each with its probability; a normal interval holds it in 22 % where 1 % of 25 differ."""
    all_there_is = cells(n)
    low, high = np.array([tango(b, c, n) for b, c, _ in all_there_is]).T
    held = []
    for gained, lost in itertools.product([0, 0.005, 0.02, 0.05, 0.1, 0.2], [0.002, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3]):
        probability = scipy.stats.multinomial.pmf(all_there_is, n, [gained, lost, 1 - gained - lost])
        within = (low - 1e-9 <= gained - lost) & (gained - lost <= high + 1e-9)
        held.append(probability[within].sum())
    assert min(held) > 0.93
    assert np.mean(held) > 0.95


@pytest.mark.parametrize(("n", "others"), [(20, 20), (30, 30), (30, 200)])
def test_the_prediction_holds_the_loss_on_other_images_as_often_as_it_says(n: int, others: int) -> None:
    all_there_is = cells(n)
    images = [np.repeat([1, -1, 0], counts) for counts in all_there_is]
    intervals = [predicted(difference(one, np.zeros(n)), n, others) for one in images]
    first = np.ceil([others * one.low - 1e-9 for one in intervals]).astype(int) + others
    last = np.floor([others * one.high + 1e-9 for one in intervals]).astype(int) + others
    for gained, lost in itertools.product([0, 0.005, 0.02, 0.1], [0.002, 0.01, 0.05, 0.1, 0.3]):
        probability = scipy.stats.multinomial.pmf(all_there_is, n, [gained, lost, 1 - gained - lost])
        sums = np.ones(1)  # the probabilities of −others … others
        for _ in range(others):
            sums = np.convolve(sums, [lost, 1 - gained - lost, gained])
        below = np.concatenate([[0], np.cumsum(sums)])
        assert probability @ (below[last + 1] - below[first]) > 0.94


def test_a_prediction_for_many_images_is_what_is_known_of_the_mean() -> None:
    found = difference(*outcomes(10, 2, 50, 38))
    for others in (0, 10**9):
        prediction = predicted(found, 100, others)
        assert (prediction.low, prediction.high) == pytest.approx((found.low, found.high))
    assert predicted(found, 100, 100).low == pytest.approx(found.value - math.sqrt(2) * (found.value - found.low))
    assert predicted(difference([1, 1], [1, 1]), 2, 1).low == -1


def test_a_paired_difference_leaves_out_how_hard_the_images_are() -> None:
    """McNemar's setting: 10 images one way, 2 the other; the 88 others say nothing, however hard they are."""
    a, b = outcomes(10, 2, 50, 38)
    found = difference(a, b)
    assert found.value == pytest.approx(0.08)
    assert (found.low, found.high, found.method) == (*tango(10, 2, 100), SCORE)
    assert (found.sign, difference(b, a).sign) == (1, -1)
    assert found == difference(*outcomes(10, 2, 88, 0))


def test_on_many_images_all_intervals_are_the_normal_one() -> None:
    a, b = outcomes(3000, 2800, 20_000, 24_200)
    normal = 200 / 50_000 + Z95 * np.std(a - b) / math.sqrt(50_000) * np.array([-1, 1])
    for found in (difference(a, b), bootstrap_difference(a, b)):
        assert (found.low, found.high) == pytest.approx(normal, abs=1e-4)


def test_means_over_draws_have_the_bootstrap_where_many_images_differ_and_never_no_width() -> None:
    dense = np.ones(200)
    for differ in (0, 1, ENOUGH_DIFFER - 1, ENOUGH_DIFFER, 199, 200):
        drawn = np.where(np.arange(200) < differ, 2 / 3, 1)
        found = difference(drawn, dense)
        few = min(differ, 200 - differ) < ENOUGH_DIFFER
        assert found.method == (SCORE if few else BOOTSTRAP)
        assert found.value == pytest.approx(-differ / 600)
        assert found.high - found.low > 0.01


@pytest.mark.parametrize(("gained", "lost", "n"), [(-1, 0, 3), (0, 0, 0), (2, 2, 3)])
def test_what_cannot_have_happened_has_no_interval(gained: int, lost: int, n: int) -> None:
    with pytest.raises(ValueError, match="no interval"):
        tango(gained, lost, n)


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
    assert found.value == pytest.approx(difference(a, b).value)
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


def test_an_interval_on_all_of_imagenet_takes_no_time() -> None:
    a, b = outcomes(12_000, 9_000, 20_000, 9_000)
    start = time.process_time()
    bootstrap_difference(a, b)
    difference(a, b)
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


@pytest.mark.parametrize("test", [bootstrap_difference, difference, mcnemar])
@pytest.mark.parametrize(("a", "b"), [([], []), ([1], [1, 0]), ([[1]], [[1]])])
def test_what_is_not_paired_has_no_statistics(test: object, a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="no pairs"):
        test(a, b)  # type: ignore[operator]
