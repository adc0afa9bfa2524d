"""Is one method better than another? A paired bootstrap on the same samples, corrected for the number of rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evals.report.runs import Result, Scores, budget_label, keeps_all, label, read_scores
from evals.stats import RESAMPLES, holm, resampled_means, verdict

FEWEST = 6
"""Samples of each task below which a difference has no interval, and no p value below .05 (evals.stats.verdict):
resampling two or three samples shows too little of how much they vary."""


@dataclass(frozen=True)
class Difference:
    """A score minus that of `against` on the same samples (0..1): mean, 95% interval, two-sided p value. low and high
    are None where a task has fewer than FEWEST samples."""

    against: str
    mean: float
    low: float | None
    high: float | None
    p: float


Differences = Mapping[str, Difference]
"""task, or "mean" for the mean of tasks -> difference."""

Compared = Mapping[str, Mapping[str, Differences]]
"""run id -> what the run is compared with ("method" or "full") -> differences."""


def compare(scores: Scores, others: Scores, against: str) -> Differences:
    """The difference in each task and in their mean. Each task is resampled within itself.

    Empty unless both runs have exactly the same samples.
    """
    return compare_pairs([(scores, others, against)])[0]


def compare_pairs(pairs: Sequence[tuple[Scores, Scores, str]]) -> list[Differences]:
    """`compare` for each pair. Pairs on the same samples share the bootstrap draws, which take most of the time."""
    alike: dict[tuple[tuple[str, tuple[str, ...]], ...], list[int]] = {}
    for i, (scores, others, _) in enumerate(pairs):
        mine, theirs = (tuple((task, tuple(sorted(found[task]))) for task in found) for found in (scores, others))
        if sorted(mine) == sorted(theirs):
            alike.setdefault(mine, []).append(i)
    out: list[Differences] = [{} for _ in pairs]
    for samples, members in alike.items():
        for first in range(0, len(members), PAIRS_AT_ONCE):
            some = members[first : first + PAIRS_AT_ONCE]
            for i, differences in zip(some, _compare_alike(samples, [pairs[i] for i in some]), strict=True):
                out[i] = differences
    return out


PAIRS_AT_ONCE = 50
"""Pairs whose bootstrap draws are in memory together."""


def _compare_alike(
    samples: Sequence[tuple[str, Sequence[str]]], pairs: Sequence[tuple[Scores, Scores, str]]
) -> list[Differences]:
    """`compare_pairs` for pairs that all have these samples: (task, sample ids) each."""
    means, draws = {}, {}
    sizes = {task: len(ids) for task, ids in samples}
    fewest = min(sizes.values())
    sizes["mean"] = sum(sizes.values()) if fewest >= FEWEST else fewest
    for seed, (task, ids) in enumerate(samples):
        columns = np.array([[scores[task][i] - others[task][i] for scores, others, _ in pairs] for i in ids])
        means[task], draws[task] = columns.mean(axis=0), resampled_means(columns, seed, RESAMPLES)
    means["mean"], draws["mean"] = (np.mean(list(found.values()), axis=0) for found in (means, draws))
    out: list[dict[str, Difference]] = [{} for _ in pairs]
    for task, mean in means.items():
        for column, (_, _, against) in enumerate(pairs):
            value, ends, p = verdict(float(mean[column]), draws[task][:, column], sizes[task])
            low, high = ends if sizes[task] >= FEWEST else (None, None)
            out[column][task] = Difference(against, value, low, high, p)
    return [*out]


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
