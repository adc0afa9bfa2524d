"""Is one method better than another? A paired bootstrap on the same samples, corrected for the number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evals.report.runs import Result, asked, keeps_all, label, scores
from evals.run.conf import read_method_defaults
from evals.stats import RESAMPLES, holm, resampled_means, verdict

Scores = Mapping[str, Mapping[str, float]]
"""task -> sample id -> score."""


@dataclass(frozen=True)
class Difference:
    """A score minus that of `against` on the same samples, 0..1: mean, 95% interval, two-sided p value."""

    against: str
    mean: float
    low: float
    high: float
    p: float


def difference(mine: Scores, other: Scores, against: str) -> dict[str, Difference]:
    """For each task and for their mean ("mean"), each task resampled within itself. Empty unless both have the same
    samples."""
    return differences([(mine, other, against)])[0]


def differences(pairs: Sequence[tuple[Scores, Scores, str]]) -> list[dict[str, Difference]]:
    """`difference` of each pair; those of the same samples share the draws, and so most of the time."""
    alike: dict[tuple[tuple[str, tuple[str, ...]], ...], list[int]] = {}
    for i, (mine, other, _) in enumerate(pairs):
        samples, others = (tuple((task, tuple(sorted(found[task]))) for task in found) for found in (mine, other))
        if sorted(samples) == sorted(others):
            alike.setdefault(samples, []).append(i)
    out: list[dict[str, Difference]] = [{} for _ in pairs]
    for samples, members in alike.items():
        for first in range(0, len(members), TOGETHER):
            some = members[first : first + TOGETHER]
            for i, found in zip(some, _differences(samples, [pairs[i] for i in some]), strict=True):
                out[i] = found
    return out


TOGETHER = 50
"""Pairs whose draws are in memory at once."""


def _differences(
    samples: Sequence[tuple[str, Sequence[str]]], pairs: Sequence[tuple[Scores, Scores, str]]
) -> list[dict[str, Difference]]:
    means, draws = {}, {}
    sizes = {task: len(ids) for task, ids in samples}
    sizes["mean"] = sum(sizes.values()) if min(sizes.values()) > 1 else 1  # one sample a task shows no spread
    for seed, (task, ids) in enumerate(samples):
        columns = np.array([[mine[task][i] - other[task][i] for mine, other, _ in pairs] for i in ids])
        means[task], draws[task] = columns.mean(axis=0), resampled_means(columns, seed, RESAMPLES)
    means["mean"], draws["mean"] = (np.mean(list(found.values()), axis=0) for found in (means, draws))
    out: list[dict[str, Difference]] = [{} for _ in pairs]
    for task, mean in means.items():
        for column, (_, _, against) in enumerate(pairs):
            value, (low, high), p = verdict(float(mean[column]), draws[task][:, column], sizes[task])
            out[column][task] = Difference(against, value, low, high, p)
    return out


def reference_of(method: str, group: Sequence[Result]) -> str | None:
    """The label that stands for `method` in these results: a label itself, or a method's with its own scorer (or the
    only one it has)."""
    labels = sorted({label(r) for r in group if not keeps_all(r)})
    usual = f"{method}-{read_method_defaults(method).get('scorer')}"
    of_method = sorted({label(r) for r in group if r["method"] == method and not keeps_all(r)})
    return next((name for name in (method, usual, *of_method) if name in labels), None)


def comparisons(group: Sequence[Result], method: str, runs: Path) -> dict[str, dict[str, dict[str, Difference]]]:
    """run id -> "method" (the run of `method` at the same budget) and "full" (the full cache) -> task or "mean" ->
    difference. p values of the means are Holm's over the group, each column by itself."""
    found = {r["run_id"]: scores(runs / r["run_id"]) for r in group}
    name = reference_of(method, group)
    at = {asked(r): r["run_id"] for r in group if label(r) == name and not keeps_all(r)}
    full = next((r["run_id"] for r in group if keeps_all(r)), None)
    cells, pairs = [], []
    for r in group:
        mine = r["run_id"]
        for kind, other in (("method", at.get(asked(r))), ("full", full)):
            if other not in (None, mine) and not keeps_all(r):
                cells.append((mine, kind))
                pairs.append((found[mine], found[str(other)], str(name) if kind == "method" else "the full cache"))
    out: dict[str, dict[str, dict[str, Difference]]] = {r["run_id"]: {} for r in group}
    for (mine, kind), changed in zip(cells, differences(pairs), strict=True):
        out[mine][kind] = changed
    for kind in ("method", "full"):
        column = [kinds[kind] for kinds in out.values() if kinds.get(kind)]
        for tasks, p in zip(column, holm([tasks["mean"].p for tasks in column]), strict=True):
            tasks["mean"] = replace(tasks["mean"], p=p)
    return out
