"""Which figures a report has: from finished runs to pictures in a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evals.looks import find_name
from evals.plots import draw_costs, draw_heads
from evals.report.captions import describe_runs
from evals.report.runs import Result, budget_label, keeps_all, label, sort_key
from evals.score_plots import draw_scores

PREFERRED_BUDGET = 0.2
"""Heads are drawn at one budget. Among budgets that equally many methods were run at, the nearest to this one is."""


def draw_experiment(name: str, group: Sequence[Result], out: Path) -> dict[str, Path]:
    """Draw the figures of one experiment: caption -> file. None are drawn of the full cache alone."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for r in group:
        if not keeps_all(r):
            share, stored = r["budget"]["kept_share"], r["budget"]["cache_bytes"]
            lines.setdefault(label(r), []).append({**r, "kept_share": share, "cache_bytes": stored})
    if not lines:
        return {}
    full = next((r for r in group if keeps_all(r)), None)
    title = describe_runs(group)
    budget, memory, heads = (out / f"{name}{kind}.png" for kind in ("", "__bytes", "__heads"))
    draw_scores("kept_share", lines, full, title, budget)
    draw_scores("cache_bytes", lines, full, title, memory)
    chosen, panels = choose_heads(group)
    draw_heads(panels, f"{title}: kept share of every head at budget {chosen}", heads)
    return {
        f"Score against budget: {title}": budget,
        f"Score against cache bytes: {title}": memory,
        f"Head budgets: {title}": heads,
    }


def draw_seeds(groups: Mapping[str, Sequence[Result]], out: Path) -> dict[str, Path]:
    """Draw one figure of each experiment that was run with several seeds: caption -> file.

    A point is the mean over seeds, its bar the standard deviation. What was not run with every seed is left out.
    """
    families: dict[str, list[Result]] = {}
    for name, group in groups.items():
        families.setdefault(drop_seed(name, group[0]), []).extend(group)
    figures = {}
    for name, family in families.items():
        seeds = {r["config"]["seed"] for r in family}
        cells: dict[tuple[str, str], list[Result]] = {}
        for r in family:
            cells.setdefault((label(r), budget_label(r)), []).append(r)
        whole = [found for found in cells.values() if {r["config"]["seed"] for r in found} == seeds]
        points = [pool_seeds(found) for found in whole]
        lines: dict[str, list[dict[str, Any]]] = {}
        for point in points:
            if not keeps_all(point):
                lines.setdefault(label(point), []).append(point)
        if len(seeds) > 1 and lines:
            full = next((point for point in points if keeps_all(point)), None)
            title = f"{describe_runs([r for found in whole for r in found])}; mean and standard deviation over seeds"
            path = out / f"{name}__seeds.png"
            draw_scores("kept_share", lines, full, title, path)
            figures[f"Score against budget: {title}"] = path
    return figures


def drop_seed(name: str, r: Result) -> str:
    """An experiment's name without the seed."""
    return "__".join(part for part in name.split("__") if part != f"s{r['config']['seed']}")


def pool_seeds(found: Sequence[Result]) -> dict[str, Any]:
    """A point of a figure: runs that differ in their seed. Its "interval" is one standard deviation to each side."""
    values = [r["score"] for r in found]
    mean, sd = float(np.mean(values)), float(np.std(values, ddof=min(1, len(values) - 1)))
    share = float(np.mean([r["budget"]["kept_share"] for r in found]))
    return {**found[0], "kept_share": share, "score": mean, "ci95": [mean - sd, mean + sd]}


def choose_heads(group: Sequence[Result]) -> tuple[str, dict[str, Sequence[Sequence[float]]]]:
    """The budget that most methods were run at, and the share of each KV head there: name -> [layers, KV heads]."""
    runs = [r for r in sorted(group, key=sort_key) if not keeps_all(r)]
    count = Counter(budget_label(r) for r in runs)

    def rank(r: Result) -> tuple[int, float]:
        return count[budget_label(r)], -abs((r["config"]["budget"] or 1) - PREFERRED_BUDGET)

    chosen = budget_label(max(runs, key=rank))
    return chosen, {find_name(label(r)): r["budget"]["heads"] for r in runs if budget_label(r) == chosen}


def draw_latencies(groups: Mapping[str, Sequence[Result]], out: Path) -> dict[str, Path]:
    """Draw times and memory against the context's length, one figure for each model and machine: caption -> file."""
    figures = {}
    for number, (name, rows) in enumerate(groups.items(), 1):
        path = out / f"latency-{number}.png"
        draw_costs(rows, name, path)
        figures[f"Latency and memory against context length: {name}"] = path
    return figures
