"""Results as plain text tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def result_table(result: Mapping[str, Any], full: Mapping[str, Any] | None = None) -> str:
    """A run on the terminal: score per task with n and 95% interval, the full cache's beside it, then what it cost."""
    beside = [f"{full['method']}"] if full else []
    rows = [["task", "score", "95% interval", "n", *beside]]
    for name, task in [*result["tasks"].items(), ("mean of tasks", None)]:
        task = task or {
            "score": result["score"],
            "ci95": result["ci95"],
            "n": sum(t["n"] for t in result["tasks"].values()),
        }
        row = [name, percent(task["score"]), "{}..{}".format(*map(percent, task["ci95"])), str(task["n"])]
        if full:
            row.append(percent(full["tasks"][name]["score"] if name in full["tasks"] else full["score"]))
        rows.append(row)
    left = result.get("left_out", ())
    missing = f"\nleft out, run.json says why: {', '.join(left)}" if left else ""
    return f"\n{result['run_id']}\n{table(rows)}{missing}\n\n{costs(result, full)}"


COSTS = [
    "kept share",
    "cache bytes a context",
    "prefill and compression",
    "time to first token",
    "time per token",
    "contexts in a batch",
    "runs decoded together",
]


def costs(result: Mapping[str, Any], full: Mapping[str, Any] | None) -> str:
    columns = [costs_of(r) for r in (result, full) if r]
    heads = [r["method"] for r in (result, full) if r]
    return table([["", *heads], *([name, *cells] for name, *cells in zip(COSTS, *columns, strict=True))])


def costs_of(result: Mapping[str, Any]) -> list[str]:
    budget, time = result["budget"], result["time"]
    return [
        f"{budget['kept_share']:.4f}",
        size(budget["cache_bytes"]),
        milliseconds(time["prefill_s"], 1),
        milliseconds(time["ttft_s"], 1),
        milliseconds(time["tpot_s"], 2),
        f"{time['batch']:g}",
        f"{time.get('shared', 1):g}",
    ]


def milliseconds(seconds: float | None, digits: int) -> str:
    """None: the run was decoded together with others, which says nothing about its own speed (job=latency does)."""
    return "-" if seconds is None else f"{seconds * 1e3:.{digits}f} ms"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left, the others to the right; a rule under the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def percent(x: float) -> str:
    return f"{100 * x:.1f}"


def size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.2f} {unit}"
        n /= 1024
    raise AssertionError
