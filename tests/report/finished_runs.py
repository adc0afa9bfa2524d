"""Folders of finished runs, as evaluate and latency leave them, with scores of our choice."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

DATA = "ruler-512__n40__s0"


def evaluation(
    runs: Path,
    method: str,
    scorer: str | None,
    budget: float | None,
    scores: Mapping[str, Sequence[float]],
    nested: str = "",
    data: str = DATA,
) -> str:
    """Write runs/<run id>/ and return the run id. scores: task -> one score a sample."""
    name = f"{method}-{scorer}__b{budget:g}" if budget else method
    run_id = f"tiny__{name}__{data}{nested and '__' + nested}"
    lines = [
        {"id": f"{task}-{i}", "task": task, "prediction": "x", "references": ["y"], "score": score}
        for task, values in scores.items()
        for i, score in enumerate(values)
    ]
    share = budget or 1.0
    interval = {task: [float(np.mean(v)) - 0.05, float(np.mean(v)) + 0.05] for task, v in scores.items()}
    mean = float(np.mean([np.mean(v) for v in scores.values()]))
    result = {
        "status": "done",
        "run_id": run_id,
        "experiment": f"tiny__{data}",
        "score": mean,
        "ci95": [mean - 0.03, mean + 0.03],
        "tasks": {t: {"score": float(np.mean(v)), "n": len(v), "ci95": interval[t]} for t, v in scores.items()},
        "budget": {
            "asked": share,
            "kept_share": share,
            "cache_bytes": share * 2**20,
            "full_cache_bytes": 2**20,
            "heads": [[share, share / 2], [share / 2, min(1.5 * share, 1)]],
        },
        "time": {"prefill_s": 0.02, "ttft_s": 0.03, "tpot_s": 0.004, "batch": 8.0, "total_s": 3.0},
        "memory": {"peak_bytes": 4e8},
        "method": method,
        "model": "tiny",
        "benchmark": data.split("__")[0],
        "config": {
            **{"budget": budget, "budget_tokens": None, "seed": 0, "limit": 40},
            **{"scorer": scorer, "allocator": "uniform", "protection": "own"},
        },
    }
    folder = runs / run_id
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"command": f"python run.py method={method}"}))
    (folder / "result.json").write_text(json.dumps(result))
    return run_id


def latency(runs: Path, method: str, lengths: Sequence[int], batch: int = 1) -> None:
    """Write the folder of a job=latency run: the method and the full cache at each length."""

    def row(name: str, tokens: int, share: float) -> dict[str, Any]:
        times = {"prefill_s": tokens / 1e4, "ttft_s": tokens / 9e3, "tpot_s": 0.001 + share * tokens / 1e6}
        memory = {"cache_bytes": share * tokens * 2048, "peak_bytes": 3e8 + tokens * 1e4}
        return {"method": name, "context_tokens": tokens, "batch": batch, **times, **memory, "attention": "loop"}

    run_id = f"tiny__{method}-snapkv__b0.2__latency__s0"
    rows = [row(name, n, share) for n in lengths for name, share in ((method, 0.2), ("full", 1.0))]
    folder = runs / run_id
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": "done", "run_id": run_id, "rows": rows}))
    (folder / "run.json").write_text(json.dumps({"device": "a processor"}))
    config = {"method": method, "scorer": {"name": "snapkv"}, "model": {"name": "tiny"}, "job": {"batch": batch}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
