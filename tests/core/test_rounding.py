"""Which way budgets are rounded: the floors and bounds of static tables, a curve's quantiles, weights, equal prices."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.budgets.curve import Knots, MeanCurve
from lukv.budgets.mean import MeanSolution
from lukv.budgets.solver import hulls


def falling(heads: int, tokens: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.random((1, heads, tokens)) / np.arange(1, tokens + 1)


def test_every_head_of_a_static_table_keeps_the_whole_floor() -> None:
    """5 protected of 205 tokens are 12.2 of the curve's 500 cells: 13 cells are kept, 12 would be too few."""
    mean = MeanSolution(1, 3)
    mean.add(falling(3, 200), 205)
    table = mean.table("losses", {})
    assert table.kept.min() >= 5 / 205


def test_the_lower_bound_lets_heads_go_down_to_the_floor_itself() -> None:
    """5 protected of 205 tokens are 12.2 cells. A head that is worth nothing loses all but those, and the other head
    one token. If the bound let the first head keep 13 cells, it would ask more of the other than the table loses."""
    mean = MeanSolution(1, 2)
    mean.add(np.stack([np.zeros(200), np.ones(200)])[None], 205)
    table = mean.table("budgets", {})
    assert table.lower_bound is not None
    assert table.expected_loss is not None
    np.testing.assert_allclose(table.kept[48] * 205, [[5, 204]])  # 49% pruned: 201 of 410
    assert table.expected_loss[48] == pytest.approx(1)
    assert (table.lower_bound <= table.expected_loss + 1e-9).all()
    assert table.lower_bound[48] > 0.9


def test_a_curves_contexts_count_by_their_weights() -> None:
    """Also behind the protected ranks."""
    one, two = falling(2, 60, 1), falling(2, 90, 2)
    alone = []
    for utility in (one, two):
        curve = MeanCurve(1, 2, 8)
        curve.add(utility)
        alone.append(curve.state)
    mean = MeanCurve(1, 2, 8)
    mean.add(one, 0.25)
    mean.add(two, 1.5)
    for name, value in mean.state.items():
        np.testing.assert_allclose(value, 0.25 * alone[0][name] + 1.5 * alone[1][name], rtol=1e-12)


def test_a_cell_of_many_tokens_weighs_more_than_a_rank() -> None:
    """One token worth 1, three worth 3: made non-increasing, these four are worth 10/4 each. That is more than the 2.2
    of the next three, which stand alone. If all cells weighed the same, the first two would be worth 2, and all
    three cells be one."""
    knots = Knots.of(np.array([[1.0, 3.0, 2.2]]), np.array([1.0, 3.0, 3.0]), protected=1)
    np.testing.assert_allclose(knots.price, [10 / 4, 2.2])
    assert knots.start.tolist() == [0.0, 1.5]


@given(st.integers(1, 60), st.integers(0, 5), st.floats(0.01, 0.99))
@settings(max_examples=200, deadline=None)
def test_a_rank_belongs_to_the_quantile_of_its_middle(free: int, protected: int, quantile: float) -> None:
    """Head 0 is dear up to a quantile of its free ranks, head 1 nowhere: rank r is at (r + 1/2) / free."""
    knots = Knots(np.array([0, 0, 1]), np.array([0.0, protected + quantile, 0.0]), np.array([2.0, 0.0, 1.0]), protected)
    tokens = free + protected
    middles = (np.arange(free) + 0.5) / free
    if np.abs(middles - quantile).min() < 1e-9:
        return
    dear = max(1, protected + int((middles < quantile).sum()))  # rank 0 always counts
    assert knots.counts(dear + 1, tokens).tolist() == [dear, 1]
    if tokens > 1:
        assert knots.counts(dear + 2, tokens).tolist() == [dear, 2]


@pytest.mark.parametrize("tokens", [300, 400, 1000])
def test_a_tables_curve_has_the_cell_of_each_ranks_middle(tokens: int) -> None:
    """A curve has 1000 cells. That at a rank's middle lies within the rank, those at its ends may reach out of it."""
    utility = np.random.default_rng(3).random((1, 2, tokens))
    mean = MeanCurve(1, 2, 0, power=1.0)
    mean.add(utility)
    curve = mean.table({"sink": 0, "recent": 0}).curve
    assert curve is not None
    bins = curve.shape[2]
    for found, own in zip(curve[0], utility[0], strict=True):
        behind = np.interp(np.arange(bins + 1) * tokens / bins, np.arange(tokens + 1), np.append(0, np.cumsum(own)))
        np.testing.assert_allclose(found, np.diff(behind), rtol=1e-5)


@pytest.mark.parametrize(
    "cost",
    [
        [0.3, 0.5, 0.3, 0.3, 0.1],  # two blocks of exactly 0.3
        [0.4, 0.0, 0.3, 0.2, 0.1, 0.2, 0.2],  # 0.20000000000000004 before 0.2
        [0.1, 0.5, 0.4, 0.1, 0.4, 0.5, 0.3, 0.4],
    ],
)
def test_neighbours_of_one_price_are_one_edge(cost: list[float]) -> None:
    """Costs in discard order. PAVA leaves them apart where its running mean has another last bit."""
    edges = hulls(np.array([cost[::-1]]))
    assert (np.diff(edges.price) > 1e-9).all()
    assert edges.size.sum() == len(cost)
    assert edges.loss.sum() == pytest.approx(sum(cost))
