"""The finished runs of a folder, and what tables and figures call them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from evals.run.folder import read_json, read_samples

Result = Mapping[str, Any]
"""The content of a result.json."""


def finished(runs: Path) -> list[Result]:
    """The results of all evaluations that are finished, in the order of their names."""
    results = [read_json(path) for path in sorted(runs.glob("*/result.json"))]
    return [r for r in results if "tasks" in r]


def latencies(runs: Path) -> dict[str, list[Result]]:
    """The rows of all finished job=latency runs, by what they have in common (model, batch, machine). Each row is
    {label, context_tokens, prefill_s, ttft_s, tpot_s, cache_bytes, peak_bytes}."""
    groups: dict[str, dict[tuple[str, int], Result]] = {}
    for path in sorted(runs.glob("*/result.json")):
        result = read_json(path)
        if "rows" not in result:
            continue
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        device = read_json(path.parent / "run.json")["device"]
        group = groups.setdefault(f"{config['model']['name']}, batch {config['job']['batch']}, {device}", {})
        for row in result["rows"]:
            own = row["method"] == config["method"]
            name = " ".join(result["run_id"].split("__")[1:3]) if own and config["scorer"] else row["method"]
            group.setdefault((name, row["context_tokens"]), {**row, "label": name})  # the full cache is in every run
    return {name: list(rows.values()) for name, rows in groups.items()}


def experiments(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results that may stand in one table, by what they have in common: model, benchmark, samples, seed."""
    groups: dict[str, list[Result]] = {}
    for r in results:
        groups.setdefault(r["experiment"], []).append(r)
    return groups


def keeps_all(r: Result) -> bool:
    return r["config"]["budget"] is None and r["config"]["budget_tokens"] is None


def label(r: Result) -> str:
    """The method part of the run id: method, scorer, and whatever else departs from the method's own choice."""
    shared = r["experiment"].split("__")
    _, method, *rest = r["run_id"].split("__")
    own = [part for part in rest if part not in shared]
    return " ".join([method, *(own if keeps_all(r) else own[1:])])  # the first of its own parts is the budget


def asked(r: Result) -> str:
    c = r["config"]
    if c["budget"] is not None:
        return f"{c['budget']:g}"
    return f"{c['budget_tokens']} tokens" if c["budget_tokens"] else "all"


def order(r: Result) -> tuple[bool, float, float]:
    """The full cache first, then by budget, then the best first."""
    c = r["config"]
    return not keeps_all(r), c["budget"] or c["budget_tokens"] or 0, -r["score"]


def scores(folder: Path) -> dict[str, dict[str, float]]:
    """task -> sample id -> score (0..1) of a finished run."""
    found: dict[str, dict[str, float]] = {}
    for line in read_samples(folder / "samples.jsonl"):
        if "error" not in line:
            found.setdefault(line["task"], {})[line["id"]] = line["score"]
    return found
