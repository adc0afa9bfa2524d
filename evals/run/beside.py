"""A finished run beside the full cache's: its score, and the difference on the same samples with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.differences import compare, group_scores
from evals.run.files import read_json
from evals.run.folder import read_samples
from lukv.names import BUDGETS


def compare_with_full(
    folder: Path, result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The full cache's score, and this run's minus it on the same samples: the mean of tasks, with a report's 95%
    interval where each task has samples enough. Empty where the run beside it has other samples or is not there.
    """
    full = find_full(folder, result)
    if full is None:
        return {}
    mine, theirs = (group_scores(lines) for lines in (samples, read_samples(full / "samples.jsonl")))
    if not mine or not (found := compare(mine, theirs, "the full cache")):
        return {}
    difference = found["mean"]
    reference = sum(sum(scores.values()) / len(scores) for scores in theirs.values()) / len(theirs)
    out = {"score/full": reference, "score/minus_full": difference.mean}
    ends = {"low": difference.low, "high": difference.high}
    return out | {f"score/minus_full_ci95_{end}": value for end, value in ends.items() if value is not None}


def find_full(folder: Path, result: Mapping[str, Any]) -> Path | None:
    """The folder of the finished full-cache run of the same experiment and prompts, among those beside this one."""
    prompts = read_json(folder / "run.json").get("prompts")
    for path in sorted(folder.parent.glob("*/result.json")):
        other = read_json(path)
        config = other.get("config", {"budget": 0})
        keeps_all = all(config.get(key) is None for key in BUDGETS)
        alike = path.parent != folder and other.get("experiment") == result.get("experiment")
        if keeps_all and alike and read_json(path.with_name("run.json")).get("prompts") == prompts:
            return path.parent
    return None
