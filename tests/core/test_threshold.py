"""Thresholds: the mean kept share over the contexts that they were fixed by, exact cases by hand, the file's checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from lukv.allocation import Budget, HeadScores
from lukv.budgets.threshold import BINS, MeanThreshold, ThresholdAllocator, find_edges, number_bins
from lukv.scoring import Scorer
from lukv.selection import Protection, protect

LAYERS, HEADS = 3, 2
PROTECTION = Protection(4, 2)


def context(seed, tokens, spread=1.0):
    """Scores [layers, K, T] whose heads differ in level, protected ones raised as an eviction raises them."""
    generator = torch.Generator().manual_seed(seed)
    level = torch.arange(LAYERS * HEADS).reshape(LAYERS, HEADS, 1) / 3
    scores = spread * torch.randn(LAYERS, HEADS, tokens, generator=generator) + level
    return torch.stack([protect(layer, PROTECTION) for layer in scores])


def allocator_of(tmp_path, contexts, metadata=None):
    mean = MeanThreshold()
    for scores in contexts:
        mean.add(scores, PROTECTION.mask(scores.shape[-1]))
    mean.thresholds(metadata or {}).save(tmp_path / "any.threshold.safetensors")
    return ThresholdAllocator(tmp_path / "any.threshold.safetensors")


def kept_share(allocator, scores, budget):
    protected = PROTECTION.mask(scores.shape[-1])
    counts = [allocator.counts(budget, HeadScores(x, protected, i, len(scores))) for i, x in enumerate(scores)]
    return float(sum(count.sum() for count in counts)) / scores.numel()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.333, 0.5, 0.805, 0.97])
def test_the_mean_over_the_contexts_meets_the_budget_and_single_ones_do_not(tmp_path, share):
    contexts = [context(i, tokens, 1 + i) + i / 4 for i, tokens in enumerate((300, 900, 500))]
    allocator = allocator_of(tmp_path, contexts)
    shares = [kept_share(allocator, scores, Budget(share=share)) for scores in contexts]
    assert np.mean(shares) == pytest.approx(share, abs=2e-3)
    assert max(shares) - min(shares) > 0.01


def test_cases_by_hand(tmp_path):
    """Ten free scores 1 .. 10 beside six protected entries: of 16, a budget of a half leaves two of them."""
    scores = torch.arange(-3.0, 13.0).expand(1, 1, -1).clone()  # of 16 tokens, 4 .. 13 are free: 1.0 .. 10.0
    scores = torch.stack([protect(layer, PROTECTION) for layer in scores])
    allocator = allocator_of(tmp_path, [scores])
    seen = HeadScores(scores[0], PROTECTION.mask(16), 0, 1)
    for kept in range(6, 17):
        assert allocator.counts(Budget(tokens=kept), seen).tolist() == [kept]
    assert allocator.counts(Budget(share=1.0), seen).tolist() == [16]
    assert allocator.counts(Budget(tokens=1), seen).tolist() == [6]  # what is protected stays
    low = HeadScores(scores[0] - 100, PROTECTION.mask(16), 0, 1)
    assert allocator.counts(Budget(share=0.8), low).tolist() == [6]
    assert allocator.counts(Budget(share=1.0), low).tolist() == [16]


def test_a_larger_budget_keeps_no_less(tmp_path):
    contexts = [context(seed, 200) for seed in range(2)]
    allocator = allocator_of(tmp_path, contexts)
    shares = [kept_share(allocator, contexts[0], Budget(share=share / 200)) for share in range(1, 201)]
    assert shares == sorted(shares)
    assert shares[-1] == 1


@settings(deadline=None)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=30))
def test_bins_have_the_order_of_the_scores_and_hold_them(values):
    scores = torch.tensor(sorted(values))
    bins = number_bins(scores)
    assert (np.diff(bins) >= 0).all()
    assert (bins >= 0).all()
    assert (bins < BINS).all()
    assert (find_edges(bins) <= scores.numpy()).all()
    assert (find_edges(bins + 1) >= scores.numpy()).all()


def test_going_on_from_a_saved_state_gives_the_same_bits():
    whole, first = MeanThreshold(), MeanThreshold()
    for mean, seeds in ((whole, (0, 1)), (first, (0,))):
        for seed in seeds:
            mean.add(context(seed, 100), PROTECTION.mask(100), 0.5)
    rest = MeanThreshold({name: array.copy() for name, array in first.state.items()})
    rest.add(context(1, 100), PROTECTION.mask(100), 0.5)
    np.testing.assert_array_equal(rest.thresholds({}).values, whole.thresholds({}).values)
    with pytest.raises(ValueError, match="no context"):
        MeanThreshold().thresholds({})


def test_a_context_that_is_all_protected_leaves_nothing_to_choose():
    mean = MeanThreshold()
    mean.add(torch.zeros(1, 1, 3), torch.ones(3, dtype=torch.bool))
    assert np.isfinite(mean.thresholds({}).values).all()


class Model:
    name, config_hash, weights_hash, layers, kv_heads = "tiny", "abc", "123", LAYERS, HEADS


def test_thresholds_of_another_model_scorer_or_protection_are_refused(tmp_path):
    about = {"config_hash": "abc", "weights_hash": "123", "scorer": "any", "sink": 4, "recent": 2}
    about["scorer_parameters"] = Scorer("any").parameters()
    allocator = allocator_of(tmp_path, [context(0, 50)], about)
    allocator.check(Model(), Scorer("any"), PROTECTION)
    with pytest.raises(ValueError, match="made for scorer any, not for other: make it with"):
        allocator.check(Model(), Scorer("other"), PROTECTION)
    with pytest.raises(ValueError, match="made for sink 4, not for 5"):
        allocator.check(Model(), Scorer("any"), Protection(5, 2))
    changed = type("Changed", (Model,), {"weights_hash": "456"})()
    with pytest.raises(ValueError, match=r"allocator\.any_weights=true"):
        allocator.check(changed, Scorer("any"), PROTECTION)
    ThresholdAllocator(allocator.path, any_weights=True).check(changed, Scorer("any"), PROTECTION)


def test_files_that_hold_no_thresholds(tmp_path):
    path = tmp_path / "tiny" / "tables" / "keydiff.threshold.safetensors"
    with pytest.raises(FileNotFoundError, match="job=calibrate model=tiny scorer=keydiff"):
        ThresholdAllocator(path)
    path.parent.mkdir(parents=True)
    falling = np.arange(101, 0, -1, dtype=np.float32)
    sound = {"kind": "lukv thresholds", "json": "{}"}
    for arrays, header in (
        ({"thresholds": falling}, {}),
        ({"other": falling}, sound),
        ({"thresholds": falling[1:]}, sound),
        ({"thresholds": -falling}, sound),
        ({"thresholds": falling * np.nan}, sound),
    ):
        save_file(arrays, path, header)
        with pytest.raises(ValueError, match="is not a file of thresholds"):
            ThresholdAllocator(path)
