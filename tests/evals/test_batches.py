"""Which contexts are prefilled together, and which runs are decoded together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from evals.jobs.decode import ROWS_TOGETHER, ActiveMethod, group_runs
from evals.jobs.prompts import BATCH_TOKENS, TokenizedSample, cut_batches
from evals.task import Sample, Task
from lukv.allocation import Budget


def samples_of(lengths: list[int]) -> list[TokenizedSample]:
    """One sample for each length of context. No two contexts are equal."""
    task = Task("task", 1, "", [], lambda prediction, sample: {"x": 0.0})
    return [
        TokenizedSample(Sample(f"{i}", "task", "", "", ("x",), 4), task, (i, *[0] * (length - 1)), (1,))
        for i, length in enumerate(lengths)
    ]


def lengths_of(lengths: list[int], size: int) -> list[list[int]]:
    return [[len(context[0].context) for context in batch] for batch in cut_batches(samples_of(lengths), size)]


def test_a_batch_has_no_more_tokens_than_the_limit() -> None:
    """Shorter contexts are padded to the longest of the batch."""
    assert lengths_of([100, 30_000, 40_000, 30_000], 8) == [[40_000], [30_000, 30_000], [100]]
    half = BATCH_TOKENS // 2
    assert lengths_of([half, half], 8) == [[half, half]]
    assert lengths_of([half + 1, half], 8) == [[half + 1], [half]]
    assert lengths_of([2 * BATCH_TOKENS], 8) == [[2 * BATCH_TOKENS]]  # one context always fits


@given(st.lists(st.sampled_from([1, 100, 9_000, 20_000, 33_000, 70_000]), min_size=1, max_size=12), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_every_context_is_in_one_batch_that_is_small_enough(lengths: list[int], size: int) -> None:
    batches = lengths_of(lengths, size)
    assert sorted(length for batch in batches for length in batch) == sorted(lengths)
    for batch in batches:
        assert len(batch) <= size
        assert len(batch) == 1 or len(batch) * max(batch) <= BATCH_TOKENS


def run_at(share: float | None, cache_dtype: str = "auto") -> ActiveMethod:
    """A run that keeps this share. None: everything."""
    eviction: Any = None if share is None else SimpleNamespace(budget=Budget(share=share), cache_dtype=cache_dtype)
    return ActiveMethod(eviction, done={})


def test_runs_decoded_together_hold_no_more_than_a_full_batch() -> None:
    """Of half a full batch they keep .9, none, .2 and .5: in order of size .1 + .25 + .45 of it fit, .5 more do not."""
    runs = [run_at(0.9), run_at(None), run_at(0.2), run_at(0.5)]
    batch = [[context] for context in samples_of([BATCH_TOKENS // 4, BATCH_TOKENS // 4])]
    assert group_runs(runs, batch) == [[runs[2], runs[3], runs[0]], [runs[1]]]


def test_runs_decoded_together_have_few_sequences() -> None:
    runs = [run_at(0.2) for _ in range(ROWS_TOGETHER)]
    batch = [[context] for context in samples_of([10, 10, 10])]
    assert [len(group) for group in group_runs(runs, batch)] == [21, 21, 21, 1]
    assert group_runs(runs[:2], [[context] for context in samples_of([1] * (ROWS_TOGETHER + 1))]) == [
        [runs[0]],
        [runs[1]],
    ]


def test_runs_decoded_together_store_alike() -> None:
    """One cache has one dtype."""
    runs = [run_at(0.1), run_at(0.2, "int8"), run_at(0.3), run_at(0.1, "int8")]
    batch = [[context] for context in samples_of([100])]
    assert group_runs(runs, batch) == [[runs[0], runs[2]], [runs[3], runs[1]]]
