"""From lines of samples to a result: means, intervals, budget, times, memory."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evals.run.settings import Run, benchmark_name
from evals.stats import mean_interval


def aggregate(run: Run, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of result.json. Scores and shares in 0..1, times in seconds, memory in bytes.

    Latencies are medians over the samples that were decoded without other runs beside them, null if there are none:
    what many runs do together says nothing about one. total_s is the sum of every sample's share of the work.
    Cache bytes are means over samples: what one context's compressed cache takes, and what it would take in full.
    entries [layers, K] are mean entries kept of a head, heads [layers, K] mean shares.
    """
    by_task: dict[str, list[float]] = {}
    for line in lines:
        by_task.setdefault(line["task"], []).append(line["score"])
    low, high = mean_interval(list(by_task.values()))
    kept = np.array([line["kept"] for line in lines], dtype=np.float64)  # [samples, layers, K]
    tokens = np.array([line["context_tokens"] for line in lines], dtype=np.float64)
    return {
        "status": "done",
        "run_id": run.id,
        "experiment": run.experiment,
        "score": float(np.mean([np.mean(s) for s in by_task.values()])),
        "ci95": [low, high],
        "tasks": {
            name: {"score": float(np.mean(s)), "n": len(s), "ci95": list(mean_interval([s]))}
            for name, s in by_task.items()
        },
        "budget": {
            "asked": run["budget"] if run["budget"] is not None else run["budget_tokens"] or 1.0,
            "kept_share": float(kept.sum() / (kept[0].size * tokens.sum())),
            "kept_entries": float(kept.sum(axis=(1, 2)).mean()),
            "cache_bytes": float(np.mean([line["cache_bytes"] for line in lines])),
            "full_cache_bytes": float(np.mean([line["full_cache_bytes"] for line in lines])),
            "entries": np.round(kept.mean(axis=0), 2).tolist(),
            "heads": np.round((kept / tokens[:, None, None]).mean(axis=0), 4).tolist(),
        },
        "time": times([line["times"] for line in lines]),
        "memory": {"peak_bytes": peak_bytes()},
        "attention": sorted({line["attention"] for line in lines}),
        "method": run["method"],
        "model": run["model"]["name"],
        "benchmark": benchmark_name(run),
        "config": {**{k: run[k] for k in ("budget", "budget_tokens", "seed", "limit")}, **run.choices},
        "config_hash": run.hash,
    }


LATENCIES = ("prefill_s", "ttft_s", "tpot_s")


def times(each: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """`shared`: how many runs were decoded together, `batch`: how many contexts of each (medians)."""
    alone = [t for t in each if t.get("shared", 1) == 1]
    return {
        **{key: float(np.median([t[key] for t in alone])) if alone else None for key in LATENCIES},
        "batch": float(np.median([t["batch"] for t in each])),
        "shared": float(np.median([t.get("shared", 1) for t in each])),
        "total_s": float(sum(t["total_s"] for t in each)),
    }


def peak_bytes() -> int:
    """Peak memory of the GPU, or without one of the process, since it began or since `reset_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():
        return int(next(x for x in status.read_text().splitlines() if x.startswith("VmHWM")).split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def reset_peak() -> None:
    """Let the next `peak_bytes` look at what comes from here on (on a CPU: where the system is Linux and allows it)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
