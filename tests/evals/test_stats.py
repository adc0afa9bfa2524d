"""Intervals and p values: against normal theory, exact enumeration, whole numbers and brute force."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from evals.stats import mean_interval, paired_bootstrap, resampled_means
from scripts.studies.interval_coverage import CASES, Case, measure

scores = st.lists(st.floats(0, 1), min_size=1, max_size=40)


@pytest.mark.parametrize("tasks", [1, 5])
def test_interval_is_that_of_normal_theory_for_many_samples(tasks: int) -> None:
    values = np.random.default_rng(1).random((tasks, 2000)) * np.linspace(0.5, 1, tasks)[:, None]
    low, high = mean_interval(list(values), draws=5000)
    half = 1.96 * np.sqrt((values.var(axis=1, ddof=1) / 2000).sum()) / tasks
    assert low == pytest.approx(values.mean() - half, abs=0.12 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.12 * half)
    assert high - low == pytest.approx(2 * half, rel=0.06)  # an interval at 90% is 16% shorter


def test_interval_of_many_small_tasks_is_that_of_normal_theory() -> None:
    """A bootstrap of 4 values varies sqrt(3/4) times as much as their mean does, and drawn weights sqrt(3/5) times."""
    values = np.random.default_rng(2).random((400, 4))
    low, high = mean_interval(list(values), draws=5000)
    half = 1.96 * np.sqrt((values.var(axis=1, ddof=1) / 4).sum()) / 400
    assert high - low == pytest.approx(2 * half, rel=0.1)


@given(st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_interval_of_successes_is_clopper_and_pearsons(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    expected = binomtest(successes, n).proportion_ci(0.95, method="exact")
    found = mean_interval([[1.0] * successes + [0.0] * (n - successes)])
    assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def coverage(n: int, truth: float) -> float:
    """How often the interval holds the truth, exactly: over all numbers of successes by their probability."""
    intervals = [mean_interval([[1] * k + [0] * (n - k)]) for k in range(n + 1)]
    return float(sum(binom.pmf(k, n, truth) for k, (low, high) in enumerate(intervals) if low <= truth <= high))


@pytest.mark.parametrize("n", [1, 5, 20, 50])
@pytest.mark.parametrize("truth", [0.02, 0.3, 0.5, 0.9, 0.98, 0.995])
def test_interval_of_successes_holds_the_truth_often_enough(n: int, truth: float) -> None:
    assert coverage(n, truth) >= 0.95


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_interval_holds_the_truth_often_enough(case: Case) -> None:
    """Of 200 repetitions 95% should hold; 184 are 1.96 standard deviations fewer. Seeded: it fails or it does not."""
    share, _ = measure(case, mean_interval, repetitions=200, draws=400)
    assert share >= 0.92


def test_interval_of_one_group_is_its_definition() -> None:
    values = [0.2, 1 / 3, 0.9, 1.0, 1.0]
    weights = np.random.default_rng(8).dirichlet(np.ones(6), size=200_000)
    low, high = (np.quantile(weights @ [*values, end], q) for end, q in ((0, 0.025), (1, 0.975)))
    assert mean_interval([values], draws=100_000) == pytest.approx((low, high), abs=0.005)


def test_one_sample_a_task_is_as_many_samples_of_one_task() -> None:
    values = [1, 0, 1, 1, 0, 1]
    assert mean_interval([[v] for v in values]) == mean_interval([values])
    low, high = mean_interval([[1.0]])
    assert (low, high) == (pytest.approx(0.025), 1.0)


@pytest.mark.parametrize("groups", [[[1, 1, 1]], [[1, 1], [1, 1, 1]], [[0.5, 0.5]], [[1], [1, 1]]])
def test_equal_scores_are_not_certainty(groups: list[list[float]]) -> None:
    low, high = mean_interval(groups)
    assert high - low > 0.1


@given(st.lists(scores, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_interval_contains_the_mean_and_is_repeatable(groups: list[list[float]]) -> None:
    low, high = mean_interval(groups, draws=500)
    mean = np.mean([np.mean(group) for group in groups])
    assert 0 <= low <= mean + 0.02
    assert mean - 0.02 <= high <= 1
    assert (low, high) == mean_interval(groups, draws=500)


def test_tasks_count_equally_whatever_their_samples() -> None:
    low, high = mean_interval([[1, 0] * 200, [1.0] * 40])
    assert low < 0.75 < high
    assert high - low < 0.1  # the mean of all samples is 0.55


def test_a_resampled_mean_is_that_of_the_values_drawn() -> None:
    values = np.random.default_rng(5).random((13, 3))
    drawn = np.random.default_rng(6).integers(13, size=(50, 13))
    np.testing.assert_allclose(resampled_means(values, 6, 50), values[drawn].mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(resampled_means(values[:, 1], 6, 50), values[drawn, 1].mean(axis=1), rtol=1e-13)


def test_seed_matters_a_little() -> None:
    values = [np.random.default_rng(3).random(30)]
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)
    assert mean_interval(values, seed=1) == pytest.approx(mean_interval(values, seed=2), abs=0.01)


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(4)
    base = 0.9 * rng.random(100)
    better = np.clip(base + 0.02 + 0.01 * rng.standard_normal(100), 0, 1)
    difference, (low, high), p = paired_bootstrap(better, base)
    assert difference == pytest.approx((better - base).mean())
    assert 0.01 < low < difference < high < 0.03
    assert p == pytest.approx(1e-4)
    assert mean_interval([base])[1] > mean_interval([better])[0]


def test_paired_of_itself_shows_nothing() -> None:
    assert paired_bootstrap([0.5, 1.0, 0.0], [0.5, 1.0, 0.0]) == (0.0, (0.0, 0.0), 1.0)


def test_p_values_are_even_where_there_is_no_difference() -> None:
    rng = np.random.default_rng(5)
    small = 0
    for seed in range(300):
        pairs = rng.random((2, 50))
        small += paired_bootstrap(pairs[0], pairs[1], seed=seed, resamples=1000)[2] < 0.1
    assert 0.05 <= small / 300 <= 0.16


def test_p_is_symmetric() -> None:
    one, other = np.random.default_rng(6).random((2, 30))
    forth, back = paired_bootstrap(one, other), paired_bootstrap(other, one)
    assert forth[0] == -back[0]
    assert forth[2] == pytest.approx(back[2], abs=1e-9)


THIRD = 1 / 3


def exact_p(first: list[float], second: list[float]) -> float:
    """The bootstrap's p over all n^n draws, in whole numbers of sixtieths."""
    whole = [int((Fraction(x).limit_denominator(60) - Fraction(y).limit_denominator(60)) * 60)
             for x, y in zip(first, second, strict=True)]  # fmt: skip
    sums = {0: Fraction(1)}
    for _ in whole:
        after: dict[int, Fraction] = {}
        for total, share in sums.items():
            for difference in whole:
                after[total + difference] = after.get(total + difference, Fraction(0)) + share / len(whole)
        sums = after
    below = sum((share for total, share in sums.items() if total < 0), sums.get(0, Fraction(0)) / 2)
    return float(min(1, max(2 * min(below, 1 - below), Fraction(2) ** (1 - len(whole)))))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 0], [2 * THIRD, THIRD]),
        ([1] * 4 + [0] * 4, [2 * THIRD] * 4 + [THIRD] * 4),
        ([1, 1, 0] + [THIRD] * 17, [2 * THIRD, 2 * THIRD, THIRD] + [THIRD] * 17),
        ([0.2] * 3 + [0.4] * 3, [0.1] * 3 + [0.5] * 3),
        ([0.1 + 0.2] * 6 + [0.3], [0.3] * 6 + [0.1 * 3]),
    ],
)
def test_differences_that_are_zero_are_on_neither_side(first: list[float], second: list[float]) -> None:
    """1/3 + 1/3 - 2/3 is not 0 in float64. Two standard deviations of p from 10,000 draws are 0.02."""
    for one, other in ((first, second), (second, first)):
        assert paired_bootstrap(one, other)[2] == pytest.approx(exact_p(one, other), abs=0.02)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=6, max_size=14))
@settings(max_examples=60, deadline=None)
def test_p_of_thirds_is_that_of_whole_numbers(pairs: list[tuple[int, int]]) -> None:
    """The same draws of numerators, which float64 adds up exactly, have the same p to the last bit."""
    first, second = np.array(pairs, dtype=np.float64).T
    assert paired_bootstrap(first / 3, second / 3)[2] == paired_bootstrap(first, second)[2]


def test_differences_larger_than_rounding_count() -> None:
    assert paired_bootstrap([0.5 + 1e-12] * 20, [0.5] * 20)[2] == pytest.approx(1e-4)
    assert paired_bootstrap([0.1 + 0.2] * 20, [0.3] * 20)[2] == 1.0


@pytest.mark.parametrize("values", [[], [[1.0]], [float("nan")], [float("inf"), 0.0]])
def test_bad_scores(values: list) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        mean_interval([values])


@pytest.mark.parametrize("groups", [[], [[0.5], [1.5]], [[-0.1, 0.2]]])
def test_scores_are_from_0_to_1(groups: list) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        mean_interval(groups)


def test_pairs_must_match() -> None:
    with pytest.raises(ValueError, match="3 and 2 were given"):
        paired_bootstrap([0, 0, 1], [1, 1])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_few_samples_that_agree_are_not_significant(n: int) -> None:
    """An exact sign test of n samples that all point one way: 2 of the 2^n assignments of signs are as extreme."""
    p = paired_bootstrap([1.0] * n, [0.0] * n)[2]
    assert p == 2 / 2**n
    assert p > 0.05
    assert paired_bootstrap([1.0] * 6, [0.0] * 6)[2] < 0.05
