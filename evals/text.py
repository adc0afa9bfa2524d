"""Numbers, results and suggestions as plain text, the same on the terminal, in report.md and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns under a ruled head. The first column is set to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True)))
        for r in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def percent(share: float) -> str:
    """A score or share (0..1) in per cent with one decimal, without the sign.

    >>> percent(0.5)
    '50.0'
    """
    return f"{100 * share:.1f}"


def size(count: float) -> str:
    """A number of bytes in its largest binary unit.

    >>> size(512), size(1536), size(3 * 2**40)
    ('512 B', '1.50 KiB', '3.00 TiB')
    """
    if count < 1024:
        return f"{count:.0f} B"
    units = ["KiB", "MiB", "GiB", "TiB"]
    while (count := count / 1024) >= 1024 and len(units) > 1:
        units.pop(0)
    return f"{count:.2f} {units[0]}"


def milliseconds(seconds: float | None, digits: int) -> str:
    """A time in milliseconds. None gives "-": runs that were decoded together have no speed of their own."""
    return "-" if seconds is None else f"{seconds * 1e3:.{digits}f} ms"


def result_table(result: Mapping[str, Any], full: Mapping[str, Any] | None = None) -> str:
    """One result.json for the terminal: the score of each task with its interval and n, then what the run cost.

    `full` is the full cache's result. Its scores and costs get a column beside the run's.
    """
    beside = [f"{full['method']}"] if full else []
    beside_of = {**full["tasks"]} if full else {}
    if full and set(full["tasks"]) == set(result["tasks"]):  # means of other tasks say nothing about each other
        beside_of["mean of tasks"] = full
    rows = [["task", "score", "95% interval", "n", *beside]]
    for name, task in [*result["tasks"].items(), ("mean of tasks", None)]:
        task = task or {
            "score": result["score"],
            "ci95": result["ci95"],
            "n": sum(t["n"] for t in result["tasks"].values()),
        }
        row = [name, percent(task["score"]), "{}..{}".format(*map(percent, task["ci95"])), str(task["n"])]
        if full:
            row.append(percent(beside_of[name]["score"]) if name in beside_of else "-")
        rows.append(row)
    left = result.get("left_out", ())
    missing = f"\nleft out, run.json says why: {', '.join(left)}" if left else ""
    return f"\n{result['run_id']}\n{table(rows)}{missing}\n\n{cost_table([r for r in (result, full) if r])}"


def cost_table(results: Sequence[Mapping[str, Any]]) -> str:
    """Cache size and times of one or two results, a column for each."""
    columns = [costs(r) for r in results]
    rows = [[name, *(column[name] for column in columns)] for name in columns[0]]
    return table([["", *(r["method"] for r in results)], *rows])


def costs(result: Mapping[str, Any]) -> dict[str, str]:
    """What one run cost: name -> text."""
    budget, time = result["budget"], result["time"]
    return {
        "kept share": f"{budget['kept_share']:.4f}",
        "cache bytes a context": size(budget["cache_bytes"]),
        "prefill and compression": milliseconds(time["prefill_s"], 1),
        "time to first token": milliseconds(time["ttft_s"], 1),
        "time per token": milliseconds(time["tpot_s"], 2),
        "contexts in a batch": f"{time['batch']:g}",
        "runs decoded together": f"{time.get('shared', 1):g}",
    }
