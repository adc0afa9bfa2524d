"""job=latency: how long, how many bytes? Shown again without torch; evals/jobs/latency.py measures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evals.run.folder import RunFolder
from evals.run.settings import Run
from evals.run.tracking import following
from evals.text import size, table


def latency(run: Run) -> None:
    """Writes and prints one row per context length and method: medians over `repeats`, seconds and bytes."""
    with RunFolder(run) as folder:
        result = folder.result()
        if result is not None:
            print(f"{run.id}: already done")
        else:
            from evals.jobs.latency import measured

            result = measured(folder)
            folder.finish(result)
            with following(run["track"], folder.path) as tracker:
                tracker.finish(result)
    print(shown(result["rows"]))
    print(f"\n{run.folder}/")


def shown(rows: Sequence[dict[str, Any]]) -> str:
    head = ["method", "context", "batch", "prefill", "first token", "per token", "cache"]
    cells = [
        [
            r["method"],
            str(r["context_tokens"]),
            str(r["batch"]),
            f"{r['prefill_s'] * 1e3:.1f} ms",
            f"{r['ttft_s'] * 1e3:.1f} ms",
            f"{r['tpot_s'] * 1e3:.2f} ms",
            size(r["cache_bytes"]),
        ]
        for r in rows
    ]
    return table([head, *cells])
