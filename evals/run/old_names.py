"""Names that have changed, so that older command lines, yaml files and run folders are still understood.

Classes have moved and a few settings have better names. What is read is translated here, once. What is written has the
new names. A run that was begun keeps its folder, whose name may have the old ones (identity.py finds it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

PLACES = {
    "evals.harness.calibrate.calibrate": "evals.jobs.job.Calibrate",
    "evals.harness.evaluate.evaluate": "evals.jobs.job.Evaluate",
    "evals.harness.latency.latency": "evals.jobs.job.Latency",
    "evals.harness.record.info": "evals.jobs.job.Info",
    "evals.harness.track.Wandb": "evals.run.tracking.Wandb",
    "lukv.backend.selection.Protection": "lukv.selection.Protection",
    "lukv.controls.LayerMean": "lukv.budgets.controls.LayerMean",
    "lukv.controls.ShuffledHeads": "lukv.budgets.controls.ShuffledHeads",
    "lukv.curve.CurveAllocator": "lukv.budgets.curve.CurveAllocator",
    "lukv.eviction.Protection": "lukv.selection.Protection",
    "lukv.table.TableAllocator": "lukv.budgets.table.TableAllocator",
}
"""Old `_target_` -> new one."""

ARGUMENTS: Mapping[str, Mapping[str, str | None]] = {
    "evals.ruler.Ruler": {"vintage": "ruler_version"},
    "evals.jobs.job.Calibrate": {"subject": None, "ignores": None},
    "evals.jobs.job.Latency": {"subject": None},
}
"""New `_target_` -> its old arguments -> the new ones, or None where the class says it by itself."""

SETTINGS = {
    "share": "share_prefill",
    "benchmark.vintage": "benchmark.ruler_version",
    "calibration.benchmark.vintage": "calibration.benchmark.ruler_version",
    "calibration.benchmark.source.vintage": "calibration.benchmark.source.ruler_version",
}
"""Old keys of the command line -> new ones."""


def translate_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as they are called now."""
    new = translate(config)
    return {SETTINGS.get(key, key): value for key, value in new.items()}


def translate(node: Any) -> Any:
    """Nested settings with today's class names and arguments."""
    if isinstance(node, list):
        return [translate(value) for value in node]
    if not isinstance(node, Mapping):
        return node
    node = {key: translate(value) for key, value in node.items()}
    if isinstance(node.get("_target_"), str):
        node["_target_"] = PLACES.get(node["_target_"], node["_target_"])
        for old, new in ARGUMENTS.get(node["_target_"], {}).items():
            node = {(new if key == old else key): value for key, value in node.items() if new or key != old}
    return node


def translate_override(text: str) -> str:
    """KEY=VALUE as typed, with today's key."""
    sign, key, rest = split_override(text)
    return sign + SETTINGS.get(key, key) + rest


def split_override(text: str) -> tuple[str, str, str]:
    """KEY=VALUE -> what stands before the key, the key, and the rest."""
    found = re.fullmatch(r"([+~]*)([\w.]+)(=.*)?", text, re.DOTALL)
    return (found[1], found[2], found[3] or "") if found else ("", text, "")
