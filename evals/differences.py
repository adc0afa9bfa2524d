"""The difference of two runs' scores on the same samples: a paired bootstrap for each task and for their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.stats import RESAMPLES, resampled_means, verdict

Scores = Mapping[str, Mapping[str, float]]
"""task -> sample id -> score (0..1)."""

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


def group_scores(lines: Sequence[Mapping[str, Any]]) -> Scores:
    """task -> sample id -> score, of lines of samples.jsonl. Samples that failed have none and are left out."""
    scores: dict[str, dict[str, float]] = {}
    for line in lines:
        if "error" not in line:
            scores.setdefault(line["task"], {})[line["id"]] = line["score"]
    return scores


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
