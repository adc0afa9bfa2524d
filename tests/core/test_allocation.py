"""Budgets and integer rounding: exact, bounded, as near to the ideal as integers can be."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.allocation import Budget, EntrySizes, HeadScores, Uniform, largest_remainder, round_half_up


@pytest.mark.parametrize(
    ("share", "tokens", "heads", "kept"),
    [(0.2, 4000, 1, 800), (0.1, 15, 1, 2), (0.3, 5, 1, 2), (0.29, 100, 1, 29), (1e-3, 1, 4, 0), (1, 7, 3, 21)],
)
def test_entries_are_decimal_and_round_half_up(share, tokens, heads, kept):
    assert Budget(share=share).entries(tokens, heads) == kept


def test_tokens_are_per_head_and_never_more_than_there_are():
    assert Budget(tokens=128).entries(1000, 8) == 1024
    assert Budget(tokens=128).entries(100, 8) == 800
    assert Budget(tokens=128).of(1000) == Fraction(128, 1000)


@pytest.mark.parametrize(
    "arguments",
    [{}, {"share": 0.5, "tokens": 3}, {"share": 0}, {"share": -0.1}, {"share": 1.5}, {"share": np.nan}, {"tokens": 0}],
)
def test_impossible_budgets_are_one_line(arguments):
    with pytest.raises(ValueError, match="budget") as error:
        Budget(**arguments)
    assert "\n" not in str(error.value)


@given(st.fractions() | st.integers().map(lambda n: Fraction(n, 2)))
def test_round_half_up(x):
    assert round_half_up(x) == (x + Fraction(1, 2)).__floor__()


@st.composite
def shares_to_round(draw):
    size, upper = draw(st.integers(1, 12)), draw(st.integers(1, 60))
    lower = draw(st.integers(0, min(2, upper)))
    kind = draw(
        st.sampled_from([st.floats(0, 1), st.floats(0, 1e-9) | st.floats(1e6, 1e9), st.just(0.0), st.just(0.3)])
    )
    weights = np.array(draw(st.lists(kind, min_size=size, max_size=size)))
    return weights, draw(st.integers(lower * size, upper * size)), upper, lower


@given(shares_to_round())
@settings(max_examples=300)
def test_largest_remainder_is_exact_bounded_and_monotone(case):
    weights, total, upper, lower = case
    counts = largest_remainder(weights, total, upper, lower)
    assert counts.sum() == total
    assert counts.dtype == np.int64
    assert ((counts >= lower) & (counts <= upper)).all()
    order = np.argsort(weights, kind="stable")
    assert (np.diff(counts[order]) >= -1).all()  # a larger weight never gets less, but for one entry of rounding


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=20), st.integers(0, 400))
def test_unbounded_counts_are_within_one_of_the_ideal(weights, total):
    w = np.array(weights)
    counts = largest_remainder(w, total, upper=total)
    ideal = w * total / w.sum()
    assert (np.abs(counts - ideal) < 1 + 1e-6).all()


def test_bounds_are_shared_out_again():
    assert largest_remainder(np.array([100.0, 1, 1]), 14, upper=10).tolist() == [10, 2, 2]
    assert largest_remainder(np.array([100.0, 1, 0]), 14, upper=10, lower=1).tolist() == [10, 3, 1]
    assert largest_remainder(np.array([0.0, 0, 0]), 5, upper=10).tolist() == [2, 2, 1]


@pytest.mark.parametrize(
    ("weights", "total", "message"),
    [([1.0, 1.0], 21, "cannot hold exactly 21"), ([1.0, np.nan], 3, "finite"), ([1.0, -1.0], 3, "negative")],
)
def test_what_cannot_be_rounded_is_an_error(weights, total, message):
    with pytest.raises(ValueError, match=message):
        largest_remainder(np.array(weights), total, upper=10)


@given(st.sampled_from([0.05, 0.2, 1 / 3, 0.5, 1.0]), st.integers(1, 200), st.integers(1, 9))
def test_uniform_keeps_the_budget_in_every_layer(share, tokens, heads):
    layer = HeadScores(torch.zeros(heads, tokens), torch.zeros(tokens, dtype=torch.bool), 0, 2)
    counts = Uniform().counts(Budget(share=share), layer)
    assert counts.sum() == Budget(share=share).entries(tokens, heads)
    assert counts.max() - counts.min() <= 1


@settings(max_examples=200, deadline=None)
@given(
    share=st.integers(1, 1000).map(lambda n: n / 1000),
    tokens=st.integers(1, 5000),
    heads=st.integers(1, 64),
    full=st.integers(2, 600),
    packed=st.integers(1, 600),
    recent=st.integers(0, 40),
)
def test_a_share_of_bytes_is_used_up_and_not_exceeded(
    share: float, tokens: int, heads: int, full: int, packed: int, recent: int
) -> None:
    """Counted entry by entry, in heads that keep equally many: what is spent is within the share, and one more entry
    would not be."""
    packed = min(packed, full)
    sizes = EntrySizes(full, packed, recent)
    if Fraction(str(share)) > Fraction(packed, full):
        with pytest.raises(ValueError, match=r"budget_bytes=.* cannot be met.* takes 0\.\d+ of the bytes"):
            Budget(share, sizes=sizes)
        return
    budget = Budget(share, sizes=sizes)
    entries = budget.entries(tokens, heads)
    allowed = Fraction(str(share)) * tokens * heads * full

    def spend(count: int) -> int:
        return min(count, heads * recent) * full + max(0, count - heads * recent) * packed

    assert 0 <= entries <= tokens * heads
    assert spend(entries) <= allowed
    assert spend(entries + 1) > allowed or entries == tokens * heads
