"""Rankings of two scores against the sets that define them."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.ops import deal_scores, rank_in_two_stages

scores = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=25)


def best(row, n, among):
    """The n best tokens of a row of scores; of equal ones the later."""
    return set(sorted(among, key=lambda t: (row[t], t), reverse=True)[:n])


@given(st.lists(scores, min_size=1, max_size=1), st.sampled_from([0.0, 0.1, 0.3, 0.5, 0.75, 1.0]))
@settings(max_examples=300, deadline=None)
def test_every_prefix_is_its_set(heads, share):
    first, second = (torch.tensor([[float(pair[i]) for pair in row] for row in heads]) for i in (0, 1))
    for order, a, b in zip(rank_in_two_stages(first, second, share).tolist(), first, second, strict=True):
        everything = set(range(len(order)))
        for n in everything:
            chosen = best(a.tolist(), int(Fraction(str(share)) * n), everything)
            chosen |= best(b.tolist(), n - len(chosen), everything - chosen)
            assert set(order[:n]) == chosen


def test_two_stages_by_hand():
    """Tokens 4, 3, 2, ... by position and 0, 1, 2, ... by score, every second place by position."""
    position = torch.arange(5.0)[None]
    assert rank_in_two_stages(position, -position, 0.5).tolist() == [[0, 4, 1, 3, 2]]
    assert rank_in_two_stages(position, position, 0.5).tolist() == [[4, 3, 2, 1, 0]]


@pytest.mark.parametrize("values", [[0.0, 0.0, 0.0, 0.0], [-1.5, 3.0, 3.0, -1.5], [1e-45, 0.0, -1e-45, -0.0]])
def test_dealt_scores_keep_the_order_and_the_values(values):
    old, order = torch.tensor([values]), torch.tensor([[2, 0, 3, 1]])
    new = deal_scores(old, order)
    assert (new[0, order[0]].diff() < 0).all()
    torch.testing.assert_close(new[0, order[0]], old[0].sort(descending=True).values, rtol=1e-6, atol=1e-44)


def test_different_scores_are_dealt_bit_for_bit():
    old = torch.randn(3, 500, generator=torch.Generator().manual_seed(0))
    order = torch.stack([torch.randperm(500, generator=torch.Generator().manual_seed(i)) for i in range(3)])
    assert torch.equal(deal_scores(old, order).gather(-1, order), old.sort(-1, descending=True).values)
