"""PyramidKV and AdaKV in both forms against plain restatements of the codes they come from; totals for every length."""

from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.adakv import AdaKV, AdaKVOriginal
from baselines.pyramidkv import PyramidKV, PyramidKVOriginal
from lukv.allocation import Budget, HeadScores, Uniform
from lukv.selection import Protection, protect

budgets = st.one_of(
    st.integers(1, 100).map(lambda percent: Budget(share=percent / 100)),
    st.floats(1e-4, 1.0).map(lambda share: Budget(share=share)),
    st.integers(1, 400).map(lambda tokens: Budget(tokens=tokens)),
)
PYRAMIDS = [PyramidKV(), PyramidKV(window=8, beta=2), PyramidKVOriginal()]
ADAPTIVE = [AdaKV(), AdaKV(alpha=0.0), AdaKV(alpha=1.0), AdaKVOriginal(), AdaKVOriginal(alpha=0.55)]
ALL = [Uniform(), *PYRAMIDS, *ADAPTIVE]
NONE = Protection()


def layer_of(scores, protection=NONE, layer=0, layers=1):
    raised = protect(scores, protection)
    return HeadScores(raised, protection.mask(scores.shape[1]), layer, layers)


def all_counts(allocator, budget, scores, protection=NONE):
    """[layers, K] for scores [layers, K, T]."""
    n = len(scores)
    layers = [layer_of(scores[i], protection, i, n) for i in range(n)]
    return torch.stack(allocator.counts_of_layers(budget, layers)).numpy()


def made_up(layers, heads, tokens, seed=0, ties=False):
    scores = np.random.default_rng(seed).lognormal(0, 2, (layers, heads, tokens)).astype(np.float32)
    return torch.from_numpy(scores.round() if ties else scores)


# ---- budget conservation -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("allocator", ALL, ids=str)
def test_totals_are_exact_for_every_length(allocator):
    for tokens in range(1, 151):
        scores = made_up(3, 2, tokens, tokens)
        for share in (0.01, 0.1, 0.2, 0.55, 1.0):
            check_totals(allocator, Budget(share=share), scores, Protection(4, 8))


@given(
    st.sampled_from(ALL), budgets, st.integers(1, 400), st.integers(1, 5), st.integers(1, 5),
    st.integers(0, 8), st.integers(0, 70), st.booleans(), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=400, deadline=None)
def test_totals_are_exact(allocator, budget, tokens, layers, heads, sink, recent, ties, seed):
    check_totals(allocator, budget, made_up(layers, heads, tokens, seed, ties), Protection(sink, recent))


def check_totals(allocator, budget, scores, protection):
    layers, heads, tokens = scores.shape
    counts = all_counts(allocator, budget, scores, protection)
    assert counts.min() >= 0
    assert counts.max() <= tokens
    if isinstance(allocator, PyramidKV):
        assert counts.sum() == entries_of(budget, tokens * layers * heads, layers * heads)
        assert (np.ptp(counts, axis=1) <= 1).all()  # the heads of a layer are equal, but for one entry
    else:
        assert (counts.sum(1) == entries_of(budget, tokens * heads, heads)).all()


def entries_of(budget, entries, heads):
    """What the budget says of so many entries, in decimals of the share as it is written; halves are rounded up."""
    if budget.tokens is not None:
        return min(budget.tokens * heads, entries)
    return int((Decimal(repr(budget.share)) * entries).quantize(Decimal(1), ROUND_HALF_UP))


@pytest.mark.parametrize(
    ("budget", "entries", "kept"),
    [
        (Budget(share=0.2), 4000, 800),
        (Budget(share=0.5), 5, 3),  # a half is rounded up
        (Budget(share=0.145), 100, 15),
        (Budget(share=0.29), 100, 29),  # 28.999999999999996 in float64
        (Budget(share=1e-05), 100, 0),
        (Budget(tokens=7), 20, 14),
        (Budget(tokens=11), 20, 20),
    ],
)
def test_the_expected_totals_are_those_of_arithmetic(budget, entries, kept):
    assert entries_of(budget, entries, 2) == kept
    assert budget.entries(entries // 2, 2) == kept or entries % 2


@pytest.mark.parametrize("allocator", ALL, ids=str)
def test_equal_scores_give_equal_heads(allocator):
    counts = all_counts(allocator, Budget(share=0.3), torch.zeros(1, 4, 100), Protection(4, 8))
    assert counts.tolist() == [[30] * 4]


# ---- PyramidKV -----------------------------------------------------------------------------------------------------


def kvpress_pyramid(share, tokens, layers, window=64, beta=20):
    """The rule of kvpress and of LU-KV's tables as METHODS puts it, in floats and with its own rounding."""
    base = tokens * share
    low = base / beta
    high = 2 * base - low
    if high >= tokens - window:
        high = tokens - window
        low = 2 * base - high
    if not tokens >= high >= low >= window:
        return [round(base)] * layers
    return [round(high - i * (high - low) / (layers - 1)) for i in range(layers)]


def factory_pyramid(capacity, tokens, layers, window=8, beta=20):
    """KVCache-Factory's integers."""
    base = capacity - window
    low = base // beta
    high = base * 2 - low
    if high >= tokens - window:
        high = tokens - window
        low = base * 2 - high
    step = (high - low) // (layers - 1)
    return [capacity if tokens < base * 2 else high - i * step + window for i in range(layers)]


@pytest.mark.parametrize("tokens", [70, 257, 1024, 8000])
@pytest.mark.parametrize("percent", [10, 20, 55, 90])
@pytest.mark.parametrize("layers", [2, 4, 32])
def test_pyramidkv_is_kvpress_within_one_entry(percent, tokens, layers):
    counts = all_counts(PyramidKV(), Budget(share=percent / 100), torch.zeros(layers, 2, tokens))
    expected = np.array(kvpress_pyramid(percent / 100, tokens, layers))
    assert np.abs(counts - expected[:, None]).max() <= 1


def test_pyramidkv_by_hand():
    """L = 20000, b = 0.1: base 2000, low 100, high 3900, five layers in steps of 950."""
    counts = all_counts(PyramidKV(), Budget(share=0.1), torch.zeros(5, 2, 20000))
    assert counts.tolist() == [[3900] * 2, [2950] * 2, [2000] * 2, [1050] * 2, [100] * 2]


@pytest.mark.parametrize(("share", "first_pyramid"), [(0.2, 6400), (0.1, 12800)])
def test_where_pyramidkv_stops_being_uniform(share, first_pyramid):
    def spread(tokens):
        return np.ptp(all_counts(PyramidKV(), Budget(share=share), torch.zeros(4, 1, tokens)))

    assert spread(first_pyramid - 5) <= 1
    assert spread(first_pyramid) > 100


@pytest.mark.parametrize("share", [0.05, 0.2, 0.49])
def test_pyramidkv_is_uniform_in_short_prompts(share):
    for tokens in range(1, 1025, 31):
        assert np.ptp(all_counts(PyramidKV(), Budget(share=share), torch.zeros(4, 1, tokens))) <= 1


@pytest.mark.parametrize("tokens", [70, 257, 1024, 8000])
@pytest.mark.parametrize("percent", [15, 20, 50, 90])  # the repository asserts a capacity above its window
@pytest.mark.parametrize("layers", [2, 4, 32])
def test_original_pyramidkv_is_the_repository_scaled_to_the_budget(percent, tokens, layers):
    """Its integer step leaves up to (n - 1) / 2 entries a head and layer too many; ours is in its proportions."""
    capacity = int(Fraction(percent, 100) * tokens + Fraction(1, 2))
    theirs = np.array(factory_pyramid(capacity, tokens, layers), dtype=float)
    budget = Budget(share=percent / 100)
    assert theirs.mean() - capacity <= (layers - 1) / 2
    counts = all_counts(PyramidKVOriginal(), budget, torch.zeros(layers, 2, tokens))
    ideal = np.minimum(theirs * (budget.entries(tokens, layers * 2) / 2 / theirs.sum()), tokens)
    assert np.abs(counts - ideal[:, None]).max() <= 1


def test_original_pyramidkv_by_hand():
    """C = 208 of 1040 tokens: base 200, low 10, high 390, five layers in steps of 95, window 8 on top."""
    counts = all_counts(PyramidKVOriginal(), Budget(share=0.2), torch.zeros(5, 1, 1040))
    assert counts.tolist() == [[398], [303], [208], [113], [18]]


def test_original_pyramidkv_is_a_pyramid_where_the_other_is_uniform():
    budget, scores = Budget(share=0.2), torch.zeros(4, 2, 1024)
    assert np.ptp(all_counts(PyramidKV(), budget, scores)) <= 1
    assert np.ptp(all_counts(PyramidKVOriginal(), budget, scores)) > 100


@pytest.mark.parametrize("allocator", [PyramidKV(), PyramidKVOriginal()], ids=str)
def test_one_layer_has_no_pyramid(allocator):
    assert all_counts(allocator, Budget(share=0.5), torch.zeros(1, 2, 2000)).tolist() == [[1000, 1000]]


# ---- AdaKV ---------------------------------------------------------------------------------------------------------


def kvpress_adakv(scores, kept, alpha=0.2):
    """kvpress's masking: each head's best are lifted to the top, then the layer's lowest are thrown away."""
    heads, tokens = scores.shape
    scores = scores.clone()
    safe = scores.topk(int(kept * alpha), -1).indices
    scores.scatter_(-1, safe, torch.finfo(scores.dtype).max)
    pruned = (-scores.flatten()).topk(heads * (tokens - kept)).indices
    return tokens - np.bincount(pruned // tokens, minlength=heads)


def repository_adakv(scores, window, kept, alpha=0.2):
    """The AdaKV repository's budgets, scores [K, T - W] before the window."""
    heads, before = scores.shape
    base = kept - window
    winners = scores.flatten().topk(heads * base).indices // before
    return np.round(np.bincount(winners, minlength=heads) * (1 - alpha) + int(base * alpha)) + window


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("percent", [10, 20, 50, 90])
@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.7, 1.0])
def test_adakv_is_kvpress(percent, seed, alpha):
    scores = made_up(1, 4, 300, seed)
    counts = all_counts(AdaKV(alpha), Budget(share=percent / 100), scores)
    assert counts[0].tolist() == kvpress_adakv(scores[0], 3 * percent, alpha).tolist()


def test_adakv_floor_is_hard():
    """One head holds every high score; the others keep floor(alpha * n) each."""
    scores = made_up(1, 4, 300)
    scores[0, 2] += 1e6
    assert all_counts(AdaKV(), Budget(share=0.1), scores).tolist() == [[6, 6, 102, 6]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("percent", [20, 50, 90])
def test_original_adakv_is_the_repository_within_rounding(percent, seed):
    """Theirs floors the common part and rounds each head: up to one entry a head below ours, and half one beside it."""
    scores = made_up(1, 4, 300, seed)
    counts = all_counts(AdaKVOriginal(), Budget(share=percent / 100), scores, Protection(recent=32))
    expected = repository_adakv(scores[0, :, :-32], 32, 3 * percent)
    assert np.abs(counts[0] - expected).max() <= 1.5


def test_original_adakv_by_hand():
    """8 of 10 beside 2 protected: .8 * 16 + .2 * 8 for the head with all 16 winners, .2 * 8 for the other."""
    scores = made_up(1, 2, 50)
    scores[0, 1] += 1e6
    counts = all_counts(AdaKVOriginal(), Budget(tokens=10), scores, Protection(recent=2))
    assert counts.tolist() == [[4, 16]]  # 3.6 and 16.4


@pytest.mark.parametrize("allocator", [AdaKV(), AdaKVOriginal()], ids=str)
def test_budget_below_the_protection_is_uniform(allocator):
    """Protected tokens of all heads outrank every score of the layer: nothing is left to compete for."""
    scores = made_up(1, 4, 100)
    scores[0, 2] += 1e6
    assert all_counts(allocator, Budget(share=0.1), scores, Protection(recent=32)).tolist() == [[10] * 4]


def test_ties_at_the_border_are_shared():
    """2 sure winners and 10 slots for 20 equal scores: 12 in the first head, 8 in the second."""
    scores = torch.zeros(1, 2, 20)
    scores[0, 0, :2], scores[0, 0, 2:14], scores[0, 1, :8] = 9.0, 5.0, 5.0
    assert all_counts(AdaKV(alpha=0.0), Budget(tokens=6), scores).tolist() == [[2 + 6, 4]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AdaKV(alpha=1.1), "alpha=1.1 must be between 0 and 1"),
        (lambda: PyramidKV(beta=0), "beta=0 at least 1"),
        (lambda: PyramidKV(window=-1), "window=-1 must not be negative"),
    ],
)
def test_wrong_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
