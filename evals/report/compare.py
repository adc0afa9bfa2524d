"""Is one method better than another? Runs on the same samples are compared, and corrected for the number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evals.differences import Differences, compare_pairs
from evals.report.runs import Result, budget_label, keeps_all, label, read_scores
from evals.stats import holm

Compared = Mapping[str, Mapping[str, Differences]]
"""run id -> what the run is compared with ("method" or "full") -> differences."""


def find_label(method: str, group: Sequence[Result]) -> str | None:
    """The label in this group that stands for `method`, or None: the method with its own parts, which has its name, or
    else the first with other ones. `method` may be a label itself."""
    labels = {label(r): r["method"] for r in group if not keeps_all(r)}
    return next((name for name in (method, *sorted(labels)) if name in labels and method in (name, labels[name])), None)


def compare_group(group: Sequence[Result], other: str | None, runs: Path) -> Compared:
    """Compare each run of an experiment with the run labelled `other` at the same budget, and with the full cache.

    p values of the means are corrected over the group (Holm): those against `other` among themselves, and those against
    the full cache among themselves.
    """
    scores = {r["run_id"]: read_scores(runs / r["run_id"]) for r in group}
    at_budget = {budget_label(r): r["run_id"] for r in group if label(r) == other and not keeps_all(r)}
    full = next((r["run_id"] for r in group if keeps_all(r)), None)
    keys, pairs = [], []
    for r in group:
        run_id = r["run_id"]
        for kind, other_id in (("method", at_budget.get(budget_label(r))), ("full", full)):
            if other_id not in (None, run_id) and not keeps_all(r):
                keys.append((run_id, kind))
                name = str(other) if kind == "method" else "the full cache"
                pairs.append((scores[run_id], scores[str(other_id)], name))
    out: dict[str, dict[str, Differences]] = {r["run_id"]: {} for r in group}
    for (run_id, kind), differences in zip(keys, compare_pairs(pairs), strict=True):
        out[run_id][kind] = differences
    for kind in ("method", "full"):
        column = [kinds for kinds in out.values() if kinds.get(kind)]
        for kinds, p in zip(column, holm([kinds[kind]["mean"].p for kinds in column]), strict=True):
            kinds[kind] = {**kinds[kind], "mean": replace(kinds[kind]["mean"], p=p)}
    return out
