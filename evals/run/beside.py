"""A finished run beside the full cache's: its score, and the difference on the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.run.files import read_json
from evals.run.folder import read_samples


def compare_with_full(
    folder: Path, result: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """The full cache's score, and what this run's is minus it, on the same samples: each task's mean, then the mean of
    tasks. Empty where the run beside it has other samples or is not there."""
    full = find_full(folder, result)
    if full is None:
        return {}
    theirs = {line["id"]: line.get("score") for line in read_samples(full / "samples.jsonl")}
    by_task: dict[str, list[tuple[float, float]]] = {}
    for line in samples:
        mine, other = line.get("score"), theirs.get(line["id"])
        if mine is None or other is None:
            return {}
        by_task.setdefault(line["task"], []).append((mine, other))
    if not by_task or len(theirs) != len(samples):
        return {}
    score, full_score = (
        sum(sum(pair[i] for pair in pairs) / len(pairs) for pairs in by_task.values()) / len(by_task) for i in (0, 1)
    )
    return {"score/full": full_score, "score/minus_full": score - full_score}


def find_full(folder: Path, result: Mapping[str, Any]) -> Path | None:
    """The folder of the finished full-cache run of the same experiment and prompts, among those beside this one."""
    prompts = read_json(folder / "run.json").get("prompts")
    for path in sorted(folder.parent.glob("*/result.json")):
        other = read_json(path)
        keeps_all = other.get("config", {}).get("budget", 0) is None and other["config"].get("budget_tokens") is None
        alike = path.parent != folder and other.get("experiment") == result.get("experiment")
        if keeps_all and alike and read_json(path.with_name("run.json")).get("prompts") == prompts:
            return path.parent
    return None
