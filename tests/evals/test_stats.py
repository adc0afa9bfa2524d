"""Bootstrap intervals: against normal theory, brute force and themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.stats import bootstrap_ci, paired_bootstrap, resampled_means

scores = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def test_interval_is_that_of_normal_theory_for_many_samples() -> None:
    values = np.random.default_rng(1).random(400)
    low, high = bootstrap_ci(values)
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(300):
        low, high = bootstrap_ci(rng.random(60) < 0.3, seed=seed, resamples=1000)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 300 <= 0.985


@given(scores)
@settings(max_examples=60, deadline=None)
def test_interval_contains_the_mean_and_is_repeatable(values: list[float]) -> None:
    low, high = bootstrap_ci(values, resamples=500)
    assert min(values) - 1e-12 <= low <= high <= max(values) + 1e-12
    assert (low, high) == bootstrap_ci(values, resamples=500)
    if len(set(values)) == 1:
        assert high == pytest.approx(low)


def test_a_resampled_mean_is_that_of_the_values_drawn() -> None:
    values = np.random.default_rng(5).random((13, 3))
    drawn = np.random.default_rng(6).integers(13, size=(50, 13))
    np.testing.assert_allclose(resampled_means(values, 6, 50), values[drawn].mean(axis=1), rtol=1e-13)
    np.testing.assert_allclose(resampled_means(values[:, 1], 6, 50), values[drawn, 1].mean(axis=1), rtol=1e-13)


def test_seed_matters_a_little() -> None:
    values = list(np.random.default_rng(3).random(30))
    assert bootstrap_ci(values, seed=1) != bootstrap_ci(values, seed=2)
    assert bootstrap_ci(values, seed=1) == pytest.approx(bootstrap_ci(values, seed=2), abs=0.01)


def test_paired_difference_is_sharper_than_two_intervals() -> None:
    rng = np.random.default_rng(4)
    base = rng.random(100)
    better = base + 0.02 + 0.01 * rng.standard_normal(100)
    difference, (low, high), p = paired_bootstrap(better, base)
    assert difference == pytest.approx((better - base).mean())
    assert 0.01 < low < difference < high < 0.03
    assert p == pytest.approx(1e-4)
    assert bootstrap_ci(base)[1] > bootstrap_ci(better)[0]


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


@pytest.mark.parametrize("values", [[], [[1.0]], [float("nan")], [float("inf"), 0.0]])
def test_bad_scores(values: list) -> None:
    with pytest.raises(ValueError, match="finite numbers"):
        bootstrap_ci(values)


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
