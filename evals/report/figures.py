"""Which figures a report has: from finished runs to pictures in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evals.plots import costs_against_context, head_shares, score_against
from evals.report.runs import Result, asked, keeps_all, label, order

CLOSEST = 0.2
"""Of several budgets that equally many methods were run at, heads are drawn at the one nearest to this share."""


def of_scores(name: str, group: Sequence[Result], out: Path) -> dict[str, Path]:
    """caption -> file: the figures of one experiment."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for r in group:
        if not keeps_all(r):
            share, stored = r["budget"]["kept_share"], r["budget"]["cache_bytes"]
            lines.setdefault(label(r), []).append({**r, "kept_share": share, "cache_bytes": stored})
    if not lines:
        return {}
    full = next((r for r in group if keeps_all(r)), None)
    title = name.replace("__", ", ")
    budget, memory, heads = (out / f"{name}{kind}.png" for kind in ("", "__bytes", "__heads"))
    score_against("kept_share", lines, full, title, budget)
    score_against("cache_bytes", lines, full, title, memory)
    chosen, panels = head_panels(group)
    head_shares(panels, f"{title}: kept share of every head at budget {chosen}", heads)
    return {
        f"Score against budget: {title}": budget,
        f"Score against cache bytes: {title}": memory,
        f"Head budgets: {title}": heads,
    }


def head_panels(group: Sequence[Result]) -> tuple[str, dict[str, Sequence[Sequence[float]]]]:
    """The budget at which most methods were run, and what each KV head of each kept there: label -> [layers, K]."""
    runs = [r for r in sorted(group, key=order) if not keeps_all(r)]
    count = Counter(asked(r) for r in runs)

    def rank(r: Result) -> tuple[int, float]:
        return count[asked(r)], -abs((r["config"]["budget"] or 1) - CLOSEST)

    chosen = asked(max(runs, key=rank))
    return chosen, {label(r): r["budget"]["heads"] for r in runs if asked(r) == chosen}


def of_latency(groups: dict[str, list[Result]], out: Path) -> dict[str, Path]:
    """caption -> file: times and memory against the context's length, one figure a model and machine."""
    figures = {}
    for number, (name, rows) in enumerate(groups.items(), 1):
        path = out / f"latency-{number}.png"
        costs_against_context(rows, name, path)
        figures[f"Latency and memory against context length: {name}"] = path
    return figures
