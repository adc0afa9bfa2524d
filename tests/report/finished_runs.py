"""Folders of finished runs with scores of our choice. Settings are composed by Hydra, results come from aggregation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml
from hydra import initialize_config_dir

from evals.jobs.result import summarize
from evals.run.compose import compose_run
from evals.run.settings import Run
from lukv.conf import CONF

DATA = "ruler-512__n40__s0"
"""What the ids of these runs end in."""

TOKENS = 1000
"""Of each context."""


@lru_cache
def compose(*overrides: str) -> Run:
    """The run that `python run.py OVERRIDES` asks for."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_run(overrides)


def sample_lines(scores: Mapping[str, Sequence[float]], share: float) -> list[dict[str, Any]]:
    """Lines of samples.jsonl. scores: task -> one score a sample; share: kept, unevenly, in 2 layers x 2 heads."""
    kept = [[share, share / 2], [share / 2, min(1.5 * share, 1)]] if share < 1 else [[1, 1], [1, 1]]
    return [
        {
            **{"id": f"{task}-{i}", "task": task, "prediction": "x", "references": ["y"], "score": score},
            **{"kept": [[round(TOKENS * s) for s in layer] for layer in kept], "context_tokens": TOKENS},
            **{"cache_bytes": round(share * 2**20), "full_cache_bytes": 2**20, "attention": "loop"},
            "times": {"prefill_s": 0.02, "ttft_s": 0.03, "tpot_s": 0.004 + share / 1e3, "batch": 8, "total_s": 3.0},
        }
        for task, values in scores.items()
        for i, score in enumerate(values)
    ]


def evaluate(
    scores: Mapping[str, Sequence[float]], *overrides: str, method: str | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(result.json, lines of samples.jsonl) of a run with these scores. `method` renames it to anything at all."""
    run = compose(*overrides)
    if method is not None:
        run = replace(run, config={**run.config, "method": method})
    lines = sample_lines(scores, run["budget"] or 1.0)
    return dict(summarize(run, lines)), lines


def write_evaluation(
    runs: Path, scores: Mapping[str, Sequence[float]], *overrides: str, about: Mapping[str, Any] | None = None
) -> str:
    """Write runs/<run id>/ and return the run id. about: more of run.json."""
    result, lines = evaluate(scores, "benchmark.length=512", "limit=40", *overrides)
    folder = runs / result["run_id"]
    folder.mkdir(parents=True)
    (folder / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "run.json").write_text(json.dumps({"command": f"python run.py {' '.join(overrides)}", **(about or {})}))
    config = compose("benchmark.length=512", "limit=40", *overrides).config
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(config)))
    (folder / "result.json").write_text(json.dumps(result))
    return str(result["run_id"])


def write_latency(runs: Path, method: str, lengths: Sequence[int]) -> None:
    """Write the folder of a job=latency run: the method and the full cache at each length."""
    run = compose("job=latency", f"method={method}", "budget=0.2")

    def row(name: str, tokens: int, share: float) -> dict[str, Any]:
        times = {"prefill_s": tokens / 1e4, "ttft_s": tokens / 9e3, "tpot_s": 0.001 + share * tokens / 1e6}
        memory = {"cache_bytes": share * tokens * 2048, "peak_bytes": 3e8 + tokens * 1e4}
        return {"method": name, "context_tokens": tokens, "batch": 1, **times, **memory, "attention": "loop"}

    rows = [row(name, n, share) for n in lengths for name, share in ((method, 0.2), ("full", 1.0))]
    folder = runs / run.id
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"status": "done", "run_id": run.id, "rows": rows}))
    (folder / "run.json").write_text(json.dumps({"device": "a processor"}))
    (folder / "config.yaml").write_text(yaml.safe_dump(dict(run.config)))
