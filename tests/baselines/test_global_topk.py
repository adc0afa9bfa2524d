"""Global top-k against one sorted list of all entries of all layers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.global_topk import GlobalTopK
from lukv.allocation import Budget, HeadScores
from lukv.selection import Protection, protect


def heads_of(scores, protection):
    mask = protection.mask(scores.shape[-1])
    return [HeadScores(protect(layer, protection), mask, i, len(scores)) for i, layer in enumerate(scores)]


def counts(scores, budget, protection=Protection()):  # noqa: B008 - frozen
    return torch.stack(GlobalTopK().counts_of_layers(budget, heads_of(scores, protection)))


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 30)),
    percent=st.integers(1, 100),
    sink=st.integers(0, 3),
    recent=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_counts_are_those_of_one_sorted_list(shape, percent, sink, recent, seed):
    layers, heads, tokens = shape
    scores = (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-3, 3, layers)[:, None, None]
    )
    protection, budget = Protection(sink, recent), Budget(share=percent / 100)
    found = counts(scores, budget, protection)
    total = budget.entries(tokens, layers * heads)
    assert found.sum() == total
    assert ((found >= 0) & (found <= tokens)).all()
    free = [t for t in range(tokens) if not protection.mask(tokens)[t]]
    rest = total - (tokens - len(free)) * layers * heads
    if rest <= 0:
        assert found.max() - found.min() <= 1
        return
    entries = [(float(scores[i, k, t]), i, k) for i in range(layers) for k in range(heads) for t in free]
    wanted = torch.full((layers, heads), tokens - len(free))
    for _, i, k in sorted(entries, reverse=True)[:rest]:
        wanted[i, k] += 1
    assert torch.equal(found, wanted)


def test_a_case_by_hand():
    """The first layer's scores are larger, so it gets nearly all, although its protected tokens are not above the
    other's best."""
    scores = torch.tensor([[[9.0, 8, 7, 6]], [[1.0, 2, 6.5, 0]]])
    assert counts(scores, Budget(share=0.5)).tolist() == [[3], [1]]
    assert counts(scores, Budget(share=0.5), Protection(sink=1)).tolist() == [[3], [1]]
    assert counts(scores, Budget(share=0.25), Protection(sink=1)).tolist() == [[1], [1]]
    assert counts(scores, Budget(share=0.125), Protection(sink=1)).tolist() == [[1], [0]]


def test_equal_scores_are_shared():
    assert counts(torch.ones(2, 3, 10), Budget(share=0.4)).tolist() == [[4, 4, 4], [4, 4, 4]]
