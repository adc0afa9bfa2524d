"""Controls of a table's budgets: the same entries as the table itself, at other heads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.allocation import Budget
from lukv.budgets.controls import LayerMean, ShuffledHeads
from lukv.budgets.table import BudgetTable, TableAllocator

LAYERS, HEADS = 4, 6


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Shares b ** power with a power a head, scaled to the budget: no two heads are alike."""
    power = np.random.default_rng(1).uniform(0.4, 3, (LAYERS, HEADS))
    budgets = np.arange(99, 0, -1)[:, None, None] / 100
    kept = np.minimum(1, budgets * (1 + (1 - budgets) * (power / power.mean() - 1)))
    path = tmp_path_factory.mktemp("table") / "t.safetensors"
    BudgetTable(kept).save(path)
    return path


def allocators(path):
    return {
        "table": TableAllocator(path),
        "mean": LayerMean(path),
        "layer": ShuffledHeads(path, seed=3, scope="layer"),
        "model": ShuffledHeads(path, seed=3),
    }


budgets = st.one_of(
    st.integers(1, 100).map(lambda p: Budget(share=p / 100)), st.integers(1, 300).map(lambda n: Budget(tokens=n))
)


@given(budgets, st.integers(1, 500))
@settings(max_examples=150, deadline=None)
def test_the_same_entries_at_other_heads(path, budget, tokens):
    counts = {name: a.counts_at(budget, tokens) for name, a in allocators(path).items()}
    table = counts["table"]
    for name, count in counts.items():
        assert count.shape == (LAYERS, HEADS), name
        assert count.sum() == budget.entries(tokens, LAYERS * HEADS), name
        assert 0 <= count.min() <= count.max() <= tokens, name
    assert (counts["mean"].sum(1) == table.sum(1)).all()
    assert (np.ptp(counts["mean"], axis=1) <= 1).all()
    assert (np.sort(counts["layer"], axis=1) == np.sort(table, axis=1)).all()
    assert (np.sort(counts["model"], axis=None) == np.sort(table, axis=None)).all()


def test_heads_really_move_and_layers_mix_only_when_asked(path):
    budget, tokens = Budget(share=0.2), 1000
    counts = {name: a.counts_at(budget, tokens) for name, a in allocators(path).items()}
    table = counts["table"]
    assert len(set(table.ravel().tolist())) > LAYERS * HEADS // 2  # budgets differ: a move shows
    assert (counts["layer"] != table).mean() > 0.5
    assert (counts["model"] != table).mean() > 0.5
    assert (counts["model"].sum(1) != table.sum(1)).any()


@pytest.mark.parametrize("scope", ["layer", "model"])
def test_one_seed_is_one_order_at_every_budget(path, scope):
    """Where the table's budgets differ between all heads, the order can be read off, and it is the same."""
    table, shuffled = TableAllocator(path), ShuffledHeads(path, seed=5, scope=scope)
    orders = set()
    for share in (0.2, 0.35, 0.5):
        before, after = (a.counts_at(Budget(share=share), 100_000).ravel() for a in (table, shuffled))
        assert len(set(before.tolist())) == before.size
        orders.add(tuple(int(np.flatnonzero(before == count)[0]) for count in after))
    assert len(orders) == 1
    other = ShuffledHeads(path, seed=6, scope=scope).counts_at(Budget(share=0.5), 100_000).ravel()
    assert (other != after).any()


def test_an_unknown_scope_is_said(path):
    with pytest.raises(ValueError, match="scope='head': choose one of layer, model"):
        ShuffledHeads(path, scope="head")


def test_they_refuse_what_the_table_refuses(tmp_path):
    with pytest.raises(FileNotFoundError, match="no budget table"):
        LayerMean(tmp_path / "none.safetensors")
