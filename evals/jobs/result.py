"""From lines of samples to a result: means, intervals, budget, times, memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evals.jobs.device import read_peak_bytes
from evals.jobs.means import average
from evals.run.records import Evaluation, TimeReport
from evals.run.run_id import name_benchmark
from evals.run.settings import Run
from lukv.names import BUDGETS

LATENCIES = ("prefill_s", "ttft_s", "tpot_s")


def summarize(run: Run, lines: Sequence[Mapping[str, Any]], left_out: Sequence[str] = ()) -> Evaluation:
    """The content of result.json; records.py says what it means. lines: SampleRecord of every sample. left_out: tasks
    that the benchmark could not give."""
    means = average(lines)
    asked = next((run[key] for key in BUDGETS if run[key] is not None), 1.0)
    return {
        "status": "done",
        "run_id": run.id,
        "experiment": run.comparison_id,
        "label": run.label,
        "score": means["score"],
        "ci95": means["ci95"],
        "tasks": means["tasks"],
        "budget": {"asked": asked, **means["budget"]},  # type: ignore[typeddict-item]
        "time": summarize_times([line["times"] for line in lines]),
        "memory": {"peak_bytes": read_peak_bytes()},
        "attention": sorted({line["attention"] for line in lines}),
        "method": run["method"],
        "model": run["model"]["name"],
        "benchmark": name_benchmark(run["benchmark"]),
        "config": {**{k: run[k] for k in (*BUDGETS, "cache_dtype", "seed", "limit")}, **run.parts},
        "config_hash": run.hash,
        "left_out": sorted(left_out),
    }


def summarize_times(each: Sequence[Mapping[str, Any]]) -> TimeReport:
    """Latencies are medians over the samples that were decoded without other runs beside them."""
    alone = [t for t in each if t.get("shared", 1) == 1]
    prefill, first, each_token = (float(np.median([t[key] for t in alone])) if alone else None for key in LATENCIES)
    return {
        "prefill_s": prefill,
        "ttft_s": first,
        "tpot_s": each_token,
        "batch": float(np.median([t["batch"] for t in each])),
        "shared": float(np.median([t.get("shared", 1) for t in each])),
        "total_s": float(sum(t["total_s"] for t in each)),
    }
