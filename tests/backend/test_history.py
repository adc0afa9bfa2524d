"""What a cache remembers beside its entries, which is what scorers observed, follows commits and roll-backs."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.allocation import Budget, Uniform
from lukv.backend.generate import append, compress
from lukv.selection import Eviction, Protection
from tests.backend.test_cache import LastQuery
from tests.reference.dense_reference import Noise, eviction, rows, tiny_model

MODEL = tiny_model("gemma3_text", layers=2)
STEPS = ["commit", "roll back"]


def assert_equal_entries(got, wanted):
    """The same entries at the same positions. Of a sliding window, where old entries may still lie, what is seen."""
    for one, other in zip(got.layers, wanted.layers, strict=True):
        seen = slice(None) if one.window is None else slice(1 - one.window, None)
        for sequence in one.held.sequences:
            assert torch.equal(one.held.find_positions(sequence)[seen], other.held.find_positions(sequence)[seen])
            pairs = zip(one.held.arena.view_sequence(sequence), other.held.arena.view_sequence(sequence), strict=True)
            assert all(torch.allclose(a[seen], b[seen], rtol=0, atol=1e-9) for a, b in pairs)


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_a_fork_is_that_of_a_prompt_of_all_committed_tokens(data):
    """Appends, commits, roll-backs and rows in another order between forks: each fork is what a fresh prefill of the
    committed tokens gives, for a scorer that needs queries and one that needs none."""
    committed = rows(data.draw(st.lists(st.integers(2, 30), min_size=1, max_size=2), "prompts"))
    cache = compress(MODEL, committed, observe=[LastQuery()], chunk=data.draw(st.sampled_from([None, 7])))
    assert_forks_are_fresh(cache, committed)
    for number, step in enumerate(data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=4), "steps")):
        new = rows(data.draw(st.lists(st.integers(1, 6), min_size=len(committed), max_size=len(committed))), number)
        append(MODEL, cache, new)
        if data.draw(st.booleans(), "other order"):
            order = data.draw(st.permutations(range(len(committed))))
            cache = cache.select_rows(order)
            committed, new = ([each[i] for i in order] for each in (committed, new))
        assert_forks_are_fresh(cache, committed)  # without what was appended
        if step == "commit":
            cache.commit()
            committed = [row + more for row, more in zip(committed, new, strict=True)]
        else:
            cache.rollback()
        assert_forks_are_fresh(cache, committed)


def assert_forks_are_fresh(cache, committed):
    for scorer in (LastQuery(), Noise()):
        chosen = eviction(0.4, scorer=scorer)
        assert_equal_entries(cache.fork_for(chosen), compress(MODEL, committed, eviction=chosen))


@settings(max_examples=15, deadline=None)
@given(st.data())
def test_what_was_rolled_back_changes_no_later_eviction(data):
    """An answer that was rolled back, any number of times, is as if it had never been."""
    later = Eviction(LastQuery(), Uniform(), Protection(), Budget(tokens=data.draw(st.integers(3, 12))))
    prompts = rows([20, 13])
    tried, untouched = (compress(MODEL, prompts, eviction=eviction(0.6), later=later) for _ in range(2))
    for number, turn in enumerate(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3), "turns")):
        for answer in data.draw(st.lists(st.integers(1, 6), max_size=2), "answers"):
            append(MODEL, tried, rows([answer] * 2, seed=50 + answer))
            tried.rollback()
        for cache in (tried, untouched):
            append(MODEL, cache, rows([turn] * 2, seed=number))
            cache.evict_again() if number % 2 else cache.commit()
    for cache in (tried, untouched):
        cache.evict_again()
    assert_equal_entries(tried, untouched)
