"""From lines of samples to means and intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.stats import mean_interval


def average(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """score, ci95, tasks and budget of result.json, as records.py describes them; what was asked for is not in it.
    lines: SampleRecord of every sample."""
    by_task: dict[str, list[float]] = {}
    for line in lines:
        by_task.setdefault(line["task"], []).append(line["score"])
    kept = np.array([line["kept"] for line in lines], dtype=np.float64)  # [samples, layers, K]
    tokens = np.array([line["context_tokens"] for line in lines], dtype=np.float64)
    return {
        "score": float(np.mean([np.mean(s) for s in by_task.values()])),
        "ci95": list(mean_interval(list(by_task.values()))),
        "tasks": {
            name: {"score": float(np.mean(s)), "n": len(s), "ci95": list(mean_interval([s]))}
            for name, s in by_task.items()
        },
        "budget": {
            "kept_share": float(kept.sum() / (kept[0].size * tokens.sum())),
            "kept_entries": float(kept.sum(axis=(1, 2)).mean()),
            "cache_bytes": float(np.mean([line["cache_bytes"] for line in lines])),
            "full_cache_bytes": float(np.mean([line["full_cache_bytes"] for line in lines])),
            "entries": np.round(kept.mean(axis=0), 2).tolist(),
            "heads": np.round((kept / tokens[:, None, None]).mean(axis=0), 4).tolist(),
            **average_later([line["while_answering"] for line in lines if "while_answering" in line]),
        },
    }


def average_later(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What result.json says of evictions while answering, which are none where `answers` (WhileAnswering) is empty."""
    if not answers:
        return {}
    means = {"answer_evictions": float(np.mean([len(each["tokens"]) for each in answers]))}
    last = [each["entries"][-1] for each in answers if each["entries"]]
    return {**means, "answer_entries": float(np.mean(last))} if last else means
