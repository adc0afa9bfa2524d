"""LU-curve: the streaming mean, its hulls and the budgets read off them, against brute force over single ranks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.allocation import Budget
from lukv.artifacts import describe
from lukv.budgets.curve import QUANTILE_BINS, CurveAllocator, Knots, MeanCurve
from lukv.budgets.solver import kept_total
from lukv.budgets.table import BudgetTable, TableAllocator
from tests.core.test_table import PROTECTION, SCORER, Model, scores

LAYERS, HEADS, PROTECTED = 3, 2, 36
ABOUT = describe(Model(), SCORER, PROTECTION)


def samples(count, seed=0, tokens=None):
    random = np.random.default_rng(seed)
    for _ in range(count):
        length = tokens or int(random.integers(60, 400))
        scale = np.random.default_rng(9).lognormal(0, 2, (LAYERS, HEADS, 1))
        fall = np.arange(1, length + 1) ** -random.uniform(0.2, 1.5, (LAYERS, HEADS, 1))
        yield random.pareto(1.5, (LAYERS, HEADS, length)) * scale * fall


def mean_of(some, protected=PROTECTED, **options):
    mean = MeanCurve(LAYERS, HEADS, protected, **options)
    for utility in some:
        mean.add(utility)
    return mean


def falling(row):
    """The non-increasing fit of a row by its definition: min over starts of max over ends of means (exact, O(n^3))."""
    n = len(row)
    total = np.concatenate([[0], np.cumsum(row)])
    mean = np.array([[(total[b + 1] - total[a]) / (b + 1 - a) if b >= a else 0 for b in range(n)] for a in range(n)])
    return np.array([min(mean[a, j:].max() for a in range(j + 1)) for j in range(n)])


def brute_force(price, total):
    """Counts per head: rank 0 of each head, then the dearest (rank, head), one by one."""
    heads, ranks = price.shape
    order = sorted(
        ((r > 0, -price[h, r] if r else 0, r, h) for h in range(heads) for r in range(ranks)), key=lambda x: x
    )
    return np.bincount([h for *_, h in order[:total]], minlength=heads)


@pytest.mark.parametrize("power", [1.0, 1.5])
def test_budgets_are_the_dearest_ranks_of_the_mean_curve(power):
    """At the calibrated length every rank has a bin of its own."""
    tokens = 40
    some = [u[..., :tokens] for u in samples(5, tokens=80)]
    mean = mean_of(some, protected=tokens - 1, power=power)  # one free rank: a cell wide as a token
    curve = np.mean([u**power for u in some], axis=0).reshape(-1, tokens)
    price = np.array([falling(row) for row in curve])
    knots = knots_of(mean)
    for total in (*range(0, 30), 100, 150, LAYERS * HEADS * tokens):
        np.testing.assert_array_equal(knots.counts(total, tokens), brute_force(np.round(price, 9), total))


def knots_of(mean):
    table = mean.table(ABOUT)
    head, start, price = table.knots.T
    return Knots(head.astype(int), start, price, mean.protected)


@given(st.integers(0, 99), st.integers(1, 500))
@settings(max_examples=60, deadline=None)
def test_totals_are_exact_nested_and_leave_no_head_empty(seed, tokens):
    knots = knots_of(mean_of(samples(2, seed % 5)))
    heads = LAYERS * HEADS
    before = np.zeros(heads, dtype=int)
    for total in np.unique(np.linspace(0, heads * tokens, 37).astype(int)):
        counts = knots.counts(int(total), tokens)
        assert counts.sum() == total
        assert (counts >= before).all()
        assert counts.max() <= tokens
        assert counts.min() >= (total >= heads)
        before = counts


def test_equal_prices_go_to_the_lower_rank_then_the_lower_head():
    flat = Knots(np.arange(3), np.zeros(3), np.ones(3), 0)
    assert flat.counts(7, 10).tolist() == [3, 2, 2]
    assert flat.counts(2, 10).tolist() == [1, 1, 0]


def test_another_length_keeps_the_protected_ranks_and_the_quantiles():
    """Two heads: one worth something in its protected ranks only, one up to the median of the others."""
    head, start = np.array([0, 0, 1, 1]), np.array([0.0, 4.0, 0.0, 4.5])
    knots = Knots(head, start, np.array([3.0, 0.0, 2.0, 0.0]), 4)
    for tokens in (24, 104, 1004):
        half = (tokens - 4) // 2
        assert knots.counts(8 + half, tokens).tolist() == [4, 4 + half]
    assert knots.counts(3, 3).tolist() == [2, 1]  # shorter than what is protected


def test_contexts_of_all_lengths_are_averaged_by_quantile():
    utility = np.broadcast_to(1 - (np.arange(64) + 0.5) / 64, (LAYERS, HEADS, 64))
    longer = np.broadcast_to(1 - (np.arange(640) + 0.5) / 640, (LAYERS, HEADS, 640))
    mean = mean_of([utility, longer], protected=0, power=1.0)
    exact = 1 - (np.arange(QUANTILE_BINS) + 0.5) / QUANTILE_BINS
    np.testing.assert_allclose(
        mean.state["free"] / 2, np.broadcast_to(exact, (LAYERS, HEADS, QUANTILE_BINS)), atol=1 / 64
    )


def test_questions_of_a_context_are_averaged_first():
    one, two, other = samples(3, tokens=100)
    mean = MeanCurve(LAYERS, HEADS, PROTECTED)
    for utility, weight in ((one, 0.5), (two, 0.5), (other, 1.0)):
        mean.add(utility, weight)
    assert mean.state["weight"] == 2
    exact = ((one**1.5 + two**1.5) / 2 + other**1.5)[..., :PROTECTED]
    np.testing.assert_allclose(mean.state["protected"], exact)


def test_going_on_from_a_saved_state_gives_the_same_bits():
    whole, first = mean_of(samples(6)), mean_of(list(samples(6))[:3])
    rest = MeanCurve(LAYERS, HEADS, PROTECTED, state={name: array.copy() for name, array in first.state.items()})
    for utility in list(samples(6))[3:]:
        rest.add(utility)
    for name, array in whole.state.items():
        np.testing.assert_array_equal(rest.state[name], array)
    with pytest.raises(ValueError, match="another model"):
        MeanCurve(LAYERS, HEADS, PROTECTED + 1, state=whole.state)
    with pytest.raises(ValueError, match="no sample"):
        MeanCurve(LAYERS, HEADS, PROTECTED).table({})


def test_the_file_certificate_and_grid(tmp_path):
    mean = mean_of(samples(7))
    table = mean.table(ABOUT)
    table.save(tmp_path / "windowed.curve.safetensors")
    again = BudgetTable.load(tmp_path / "windowed.curve.safetensors")
    np.testing.assert_array_equal(again.knots, table.knots)
    assert again.metadata["kind"] == "curve"
    assert (table.lower_bound <= table.expected_loss * (1 + 1e-9)).all()
    gaps = []  # the budget cuts one head's edge: the loss is above the bound by that head's hull gap at most
    for head in range(LAYERS * HEADS):
        discarded, loss, corners = table.loss_curve(*divmod(head, HEADS))
        gaps.append(np.max(loss - np.interp(discarded, discarded[corners], loss[corners])))
    assert (table.expected_loss <= table.lower_bound + max(gaps) * (1 + 1e-6)).all()
    ours = CurveAllocator(tmp_path / "windowed.curve.safetensors")
    tokens = round(float(mean.state["tokens"] / mean.state["weight"]))
    grid = kept_total(LAYERS * HEADS * tokens)
    for percent in (5, 20, 50):
        counts = ours.counts_at(Budget(share=percent / 100), tokens)
        assert counts.sum() == grid[99 - percent]
        np.testing.assert_array_equal(counts, np.rint(table.kept[99 - percent] * tokens))
    table.save_npy(tmp_path / "grid.npy")  # what other programs read
    plain = TableAllocator(tmp_path / "grid.npy").counts_at(Budget(share=0.2), tokens)
    np.testing.assert_array_equal(plain, ours.counts_at(Budget(share=0.2), tokens))
    ours.check(Model(), SCORER, PROTECTION)
    with pytest.raises(ValueError, match="scorer windowed, not for other"):
        ours.check(Model(), replace(SCORER, name="other"), PROTECTION)
    layer = ours.counts(Budget(share=0.3), scores(1, 90))
    np.testing.assert_array_equal(layer, ours.counts_at(Budget(share=0.3), 90)[1])


def test_a_table_of_budgets_is_no_curve(tmp_path):
    table = mean_of(samples(2)).table(ABOUT)
    replace(table, knots=None).save(tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="not a curve: allocator=budget_table"):
        CurveAllocator(tmp_path / "t.safetensors")
    with pytest.raises(ValueError, match="knots are not those of 6 heads"):
        replace(table, knots=table.knots[table.knots[:, 0] > 0])
    with pytest.raises(ValueError, match="which tokens were protected"):
        replace(table, metadata={})
