"""The tie rule, protection and the guards of lukv/selection.py, against brute force on small cases."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.allocation import Budget, Uniform
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Eviction, Protection, protect, rank, select_best

finite = st.floats(min_value=-(2.0**120), max_value=2.0**120, width=32)
few = st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e9, 1e30, -1e30])


@st.composite
def score_table(draw):
    heads, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 12))
    values = draw(st.lists(st.one_of(few, finite), min_size=heads * tokens, max_size=heads * tokens))
    return torch.tensor(values, dtype=torch.float32).view(heads, tokens)


@given(score_table())
def test_rank_is_the_tie_rule(scores):
    for row, order in zip(scores.tolist(), rank(scores).tolist(), strict=True):
        assert order == sorted(range(len(row)), key=lambda t: (-row[t], -t))


@given(score_table(), st.integers(0, 14), st.integers(0, 14))
@settings(max_examples=200)
def test_protected_tokens_outrank_all_others_of_the_layer(scores, sink, recent):
    tokens = scores.shape[1]
    protection = Protection(sink, recent)
    raised = protect(scores, protection)
    order = [*range(min(sink, tokens)), *reversed(range(max(sink, tokens - recent), tokens))]  # best first
    assert protection.mask(tokens).nonzero().flatten().tolist() == sorted(order)
    for row in rank(raised).tolist():
        assert row[: len(order)] == order
    mask = protection.mask(tokens)
    assert torch.equal(raised[:, ~mask], scores[:, ~mask])
    if mask.any() and not mask.all():  # across heads too, where heads compete
        assert raised[:, mask].min() > scores.max()


@pytest.mark.parametrize("size", [0.0, 1.0, 1e9, -1e9, 1e30, 3.4e38 * 0.99, -3.4e38])
def test_protection_holds_at_any_magnitude(size):
    """max + 1 would be lost in rounding from 2**24 on."""
    scores = torch.full((2, 6), size)
    raised = protect(scores, Protection(sink=2, recent=1))
    assert (raised[:, 0] > raised[:, 1]).all()
    assert (raised[:, 1] > raised[:, 5]).all()
    assert (raised[:, 5] > raised[:, 4]).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, torch.finfo(torch.float32).max])
@pytest.mark.parametrize("position", [0, 2])
def test_scores_that_cannot_be_ranked(bad, position):
    scores = torch.zeros(2, 5)
    scores[1, position] = bad
    with pytest.raises(ValueError, match="scorer mine: a score is NaN or infinite"):
        protect(scores, Protection(sink=1), "mine")


@given(score_table(), st.data())
def test_best_keeps_the_best(scores, data):
    heads, tokens = scores.shape
    counts = data.draw(st.lists(st.integers(0, tokens), min_size=heads, max_size=heads))
    kept = select_best(scores, torch.tensor(counts))
    for row, mask, count in zip(scores.tolist(), kept.tolist(), counts, strict=True):
        order = sorted(range(tokens), key=lambda t: (-row[t], -t))
        assert {t for t in range(tokens) if mask[t]} == set(order[:count])


def test_over_takes_the_larger():
    assert Protection(4, 1).over(Scorer(sink=0, recent=32)) == Protection(4, 32)
    assert Protection(0, 0).over(Scorer(sink=4, recent=2)) == Protection(4, 2)


class Fixed(Scorer):
    def __init__(self, scores):
        super().__init__(name="fixed")
        object.__setattr__(self, "scores", scores)

    def score(self, layer):
        return self.scores


def prompt(heads, tokens):
    keys = torch.zeros(heads, tokens, 4)
    return PromptLayer(0, 2, keys, keys, heads, 0.5)


def test_budget_below_the_protection_keeps_the_first_sinks():
    eviction = Eviction(Fixed(torch.zeros(2, 20)), Uniform(), Protection(sink=4, recent=2), Budget(share=0.15))
    assert [row.nonzero().flatten().tolist() for row in eviction.keep(prompt(2, 20))] == [[0, 1, 2]] * 2
    eviction = Eviction(Fixed(torch.zeros(2, 20)), Uniform(), Protection(sink=4, recent=2), Budget(share=0.25))
    assert [row.nonzero().flatten().tolist() for row in eviction.keep(prompt(2, 20))] == [[0, 1, 2, 3, 19]] * 2


def test_one_token_and_nothing_kept():
    layer = prompt(2, 1)
    assert (
        Eviction(Fixed(torch.zeros(2, 1)), Uniform(), Protection(), Budget(share=1.0)).keep(layer).tolist()
        == [[True]] * 2
    )
    assert (
        Eviction(Fixed(torch.zeros(2, 1)), Uniform(), Protection(), Budget(share=0.1)).keep(layer).tolist()
        == [[False]] * 2
    )


def test_wrong_shapes_are_said():
    with pytest.raises(ValueError, match=r"scorer fixed: scores \[2, 3\] instead of \[2, 20\]"):
        Eviction(Fixed(torch.zeros(2, 3)), Uniform(), Protection(), Budget(share=0.5)).keep(prompt(2, 20))

    class TooMany(Uniform):
        def counts(self, budget, layer):
            return super().counts(budget, layer) + layer.tokens

    with pytest.raises(ValueError, match=r"TooMany: counts \[30, 30\] are not 2 numbers from 0 to 20"):
        Eviction(Fixed(torch.zeros(2, 20)), TooMany(), Protection(), Budget(share=0.5)).keep(prompt(2, 20))
