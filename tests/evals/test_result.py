"""From lines of samples to a result: what is averaged over what."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from evals.jobs.result import summarize


class FinishedRun(SimpleNamespace):
    """The part of a run that a result repeats."""

    def __getitem__(self, key: str) -> Any:
        benchmark = {"_target_": "evals.jsonl.Jsonl", "data": "mine.jsonl"}
        return {"budget": 0.2, "model": {"name": "tiny"}, "method": "lukv", "benchmark": benchmark}.get(key)


@pytest.fixture
def run() -> FinishedRun:
    return FinishedRun(id="tiny__lukv", comparison_id="tiny", label="lukv", parts={}, hash="0")


def line(task: str, score: float, kept: int = 2, tokens: int = 10) -> dict[str, Any]:
    times = {"prefill_s": 1.0, "ttft_s": 2.0, "tpot_s": 3.0, "batch": 1, "total_s": 4.0}
    return {
        "task": task,
        "score": score,
        "kept": [[kept, kept]],
        "context_tokens": tokens,
        "cache_bytes": 8 * kept,
        "full_cache_bytes": 8 * tokens,
        "times": times,
        "attention": "loop",
    }


def test_a_runs_score_is_the_mean_of_its_tasks_not_of_its_samples(run: FinishedRun) -> None:
    lines = [line("many", 1.0)] * 40 + [line("few", 0.0)] * 10
    found = summarize(run, lines)  # type: ignore[arg-type]
    assert found["score"] == 0.5
    assert found["ci95"][0] < 0.5 < found["ci95"][1]
    assert {name: (task["score"], task["n"]) for name, task in found["tasks"].items()} == {
        "many": (1.0, 40),
        "few": (0.0, 10),
    }


def test_a_tasks_interval_is_that_of_its_mean(run: FinishedRun) -> None:
    found = summarize(run, [line("one", float(i % 4 > 0)) for i in range(40)])  # type: ignore[arg-type]
    expected = binomtest(30, 40).proportion_ci(0.95, method="exact")
    assert found["tasks"]["one"]["ci95"] == pytest.approx([expected.low, expected.high])
    assert found["ci95"] == pytest.approx(found["tasks"]["one"]["ci95"])


def test_the_means_interval_is_narrower_than_a_tasks_and_95_per_cent(run: FinishedRun) -> None:
    """Four tasks of 400 scores: normal theory for a mean of independent means."""
    values = np.random.default_rng(0).random((4, 400))
    found = summarize(run, [line(str(t), s) for t, row in enumerate(values) for s in row])  # type: ignore[arg-type]
    half = 1.96 * np.sqrt((values.var(axis=1, ddof=1) / 400).sum()) / 4
    low, high = found["ci95"]
    assert high - low == pytest.approx(2 * half, rel=0.07)  # an interval at 90% is 16% shorter
    for task in found["tasks"].values():
        assert high - low < 0.6 * (task["ci95"][1] - task["ci95"][0])


def test_the_kept_share_is_of_all_entries(run: FinishedRun) -> None:
    """Long contexts hold more entries, and count for more."""
    lines = [line("one", 1.0, kept=10, tokens=10), line("one", 1.0, kept=9, tokens=90)]
    found = summarize(run, lines)["budget"]  # type: ignore[arg-type]
    assert found["kept_share"] == pytest.approx(19 / 100)
    assert (found["kept_entries"], found["cache_bytes"], found["full_cache_bytes"]) == (19.0, 76.0, 400.0)
