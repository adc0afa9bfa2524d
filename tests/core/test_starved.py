"""Heads with fewer slots than protected tokens: the three rules, each beside its own few lines of numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lukv.scoring import Scorer
from lukv.selection import STARVED, Protection, protect, select_best


def kept_by(rule: str, scores: np.ndarray, sink: int, recent: int, slots: int) -> set[int]:
    """Of one head, by position."""
    tokens = len(scores)
    sinks, latest = range(min(sink, tokens)), range(max(0, tokens - recent), tokens)
    protected = sorted({*sinks, *latest})
    if rule == "sinks_first" and slots <= len(protected):
        return set([*sinks, *sorted(set(latest) - set(sinks), reverse=True)][:slots])
    tied = scores.copy()
    tied[protected] = scores.max() + 1
    if rule == "authors":  # prune upwards, the earlier of equal scores first
        return set(np.argsort(tied, kind="stable")[tokens - slots :])
    if slots <= len(protected):  # keep downwards, the earlier of equal scores first
        return set(np.argsort(-tied, kind="stable")[:slots])
    return set(np.argsort(tied, kind="stable")[tokens - slots :])  # nobody is starved: our tie rule


@pytest.mark.parametrize("rule", STARVED)
@given(st.integers(1, 40), st.integers(0, 6), st.integers(0, 36), st.integers(0, 40), st.integers(0, 1000))
def test_what_a_starved_head_keeps(rule, tokens, sink, recent, slots, seed):
    slots = min(slots, tokens)
    scores = np.random.default_rng(seed).integers(0, 4, (1, tokens)).astype(np.float32)
    raised = protect(torch.from_numpy(scores), Protection(sink, recent, rule))
    kept = select_best(raised, torch.tensor([slots]))[0].nonzero()[:, 0].tolist()
    assert set(kept) == kept_by(rule, scores[0], sink, recent, slots)


def test_the_rule_stays_where_a_scorer_protects_more():
    protection = Protection(1, 0, "authors").over(Scorer(name="any", sink=4, recent=2))
    assert protection == Protection(4, 2, "authors")
    with pytest.raises(ValueError, match="choose one of sinks_first, earliest, authors"):
        Protection(starved="latest")
