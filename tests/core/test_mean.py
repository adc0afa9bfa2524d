"""Streaming means of solutions and loss curves, against the samples themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.budgets.mean import GAPS, RANK_BINS, MeanSolution, bin_by_rank, loss_beyond
from lukv.budgets.solver import floor_of, solve

LAYERS, HEADS, PROTECTED = 2, 3, 5


def samples(count, seed=0, tokens=None):
    """Utility of the unprotected tokens, best-ranked first, and the number of tokens. A few heads matter much more."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        length = tokens or int(random.integers(40, 300))
        head = random.lognormal(0, 1, size=(LAYERS, HEADS, 1))
        fall = np.exp(-np.arange(length - PROTECTED) / random.uniform(5, 100, size=(LAYERS, HEADS, 1)))
        yield head * fall * random.lognormal(0, 2, size=(LAYERS, HEADS, length - PROTECTED)), length


def mean_of(some, **options):
    mean = MeanSolution(LAYERS, HEADS, **options)
    for utility, tokens in some:
        mean.add(utility, tokens)
    return mean


def test_budgets_are_the_mean_of_the_samples_own():
    mean = mean_of(samples(7))
    table = mean.table("budgets", {"note": 1})
    solutions = [(solve(utility, tokens), tokens) for utility, tokens in samples(7)]
    np.testing.assert_allclose(table.kept, np.mean([s.kept / tokens for s, tokens in solutions], axis=0))
    np.testing.assert_allclose(table.metadata["sample_loss"], np.mean([s.loss for s, _ in solutions], axis=0))
    bounds = np.mean([s.lower_bound for s, _ in solutions], axis=0)
    np.testing.assert_allclose(table.metadata["sample_lower_bound"], bounds)
    assert table.metadata["note"] == 1


def test_the_distribution_of_the_samples_certificates():
    mean = mean_of(samples(40))
    solutions = [solve(utility, tokens) for utility, tokens in samples(40)]
    gaps = np.sort([s.loss / s.lower_bound - 1 for s in solutions], axis=0)
    for quantile, exact in ((0.5, gaps[19]), (0.95, gaps[37]), (1.0, gaps[39])):
        ours = mean.gaps(quantile)
        assert (ours >= exact * (1 - 1e-9)).all()
        assert (ours <= np.maximum(exact * 10**0.05, GAPS[0]) * (1 + 1e-9)).all()
    nothing = mean_of([(np.zeros((LAYERS, HEADS, 50)), 55)])
    np.testing.assert_array_equal(nothing.gaps(1.0), GAPS[0])


def test_weights_count_as_repetitions():
    twice = mean_of([*samples(2), next(samples(2))]).table("budgets", {})
    weighted = MeanSolution(LAYERS, HEADS)
    for (utility, tokens), weight in zip(samples(2), (2.0, 1.0), strict=True):
        weighted.add(utility, tokens, weight)
    np.testing.assert_allclose(weighted.table("budgets", {}).kept, twice.kept)


@pytest.mark.parametrize("aggregation", ["budgets", "losses"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_the_certificate_holds_and_losses_has_the_least_expected_loss(aggregation, scope):
    mean = mean_of(samples(9), scope=scope)
    table = mean.table(aggregation, {})
    assert (table.lower_bound <= table.expected_loss * (1 + 1e-9)).all()
    if scope == "global":
        best = mean.table("losses", {})
        assert best.expected_loss.sum() <= table.expected_loss.sum() * (1 + 1e-9)
        gap = (best.expected_loss - best.lower_bound).sum() / best.expected_loss.sum()
        assert gap < 0.05


def test_one_sample_on_the_grid_is_solved_the_same_either_way():
    utility, tokens = next(samples(1, tokens=RANK_BINS))
    mean = mean_of([(utility, tokens)])
    budgets, losses = mean.table("budgets", {}), mean.table("losses", {})
    np.testing.assert_allclose(losses.kept, budgets.kept)
    np.testing.assert_allclose(budgets.expected_loss, solve(utility, tokens).loss, rtol=1e-6)
    np.testing.assert_allclose(budgets.lower_bound, solve(utility, tokens).lower_bound, rtol=1e-6)


@given(st.integers(PROTECTED, 1200), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_curve_bin_by_rank_keeps_the_sum_and_the_places(tokens, seed):
    utility = np.random.default_rng(seed).random((LAYERS, HEADS, tokens - PROTECTED))
    cells = bin_by_rank(utility, tokens)
    assert cells.shape == (LAYERS, HEADS, RANK_BINS)
    np.testing.assert_allclose(cells.sum(2), utility.sum(2))
    kept = np.random.default_rng(seed).integers(PROTECTED, tokens + 1, size=(1, LAYERS, HEADS))
    exact = sum(utility[i, j, kept[0, i, j] - PROTECTED :].sum() for i in range(LAYERS) for j in range(HEADS))
    if tokens <= RANK_BINS and RANK_BINS % tokens == 0:
        np.testing.assert_allclose(loss_beyond(cells, kept / tokens), [exact])
    else:  # off the grid by less than a cell's worth of tokens
        np.testing.assert_allclose(
            loss_beyond(cells, kept / tokens), [exact], atol=LAYERS * HEADS * (tokens / RANK_BINS + 1)
        )


def test_going_on_from_a_saved_state_gives_the_same_bits():
    whole = mean_of(samples(6))
    first = mean_of(list(samples(6))[:3])
    rest = MeanSolution(LAYERS, HEADS, state={name: array.copy() for name, array in first.state.items()})
    for utility, tokens in list(samples(6))[3:]:
        rest.add(utility, tokens)
    for name, array in whole.state.items():
        np.testing.assert_array_equal(rest.state[name], array)


def test_short_contexts_are_kept_whole_down_to_their_floor():
    mean = mean_of([(np.ones((LAYERS, HEADS, 0)), PROTECTED)])
    np.testing.assert_array_equal(mean.table("budgets", {}).kept, 1)
    assert floor_of(PROTECTED, PROTECTED) == PROTECTED


def test_what_cannot_be_is_an_error():
    with pytest.raises(ValueError, match="no sample"):
        MeanSolution(LAYERS, HEADS).table("budgets", {})
    with pytest.raises(ValueError, match="'budgets' or 'losses'"):
        mean_of(samples(1)).table("median", {})
    with pytest.raises(ValueError, match="another model"):
        MeanSolution(LAYERS + 1, HEADS, state=mean_of(samples(1)).state)
