"""Finished runs as kvpress's leaderboard takes them: predictions.csv, metrics.json and config.yaml in a folder each.

kvpress's evaluation (evaluate.py of 0.5.5) writes these three files into DATASET__DATA_DIR__MODEL__PRESS__RATIO/, and
its leaderboard shows what is copied there. Scores are its own: per cent with two decimals, from predictions of which it
deletes the control characters (RULER) or the blanks in front (LongBench).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from evals.report.data import name_row, without_places
from evals.report.runs import Result, keeps_all, read_results
from evals.run.files import read_json, read_settings
from evals.run.folder import read_samples
from lukv.artifacts import write_atomically

OWN_RULER, RULER_TASKS, RULER_SAMPLES = "simonjegou/ruler", 13, 500
"""kvpress's data, its tasks and the samples of each."""

SCORE = "kvpress"
"""Its scorer's name among a sample's scores."""

Lines = Sequence[Mapping[str, Any]]
"""Of samples.jsonl, those that were answered."""


@dataclass(frozen=True)
class Entry:
    """One folder. config: kvpress's EvaluationConfig. metrics: what its scorer of that data set returns. differences:
    what tells the run from one that kvpress would have made, a line each."""

    run_id: str
    config: dict[str, Any]
    metrics: Any
    lines: Lines
    differences: list[str]

    @property
    def folder(self) -> str:
        """Its name by kvpress's own rule."""
        c = self.config
        parts = [c["dataset"], c["data_dir"], c["model"].replace("/", "--"), c["press_name"]]
        parts.append(f"{c['compression_ratio']:.2f}")
        if c["fraction"] < 1:
            parts.append(f"fraction{c['fraction']:.3f}")
        if c["query_aware"]:
            parts.append("query_aware")
        return "__".join(parts)


def export(runs: Path, only: str, to: Path) -> list[Entry]:
    """Write the finished runs of RULER and LongBench in `runs` whose ids match the pattern `only` into folders in `to`.

    Raises ValueError where there is none, where two would be the same folder, and for a run that kvpress's files cannot
    describe.
    """
    chosen = [r for r in read_results(runs) if fnmatchcase(r["run_id"], only)]
    entries: dict[str, Entry] = {}
    for r in chosen:
        for entry in describe(r, runs / r["run_id"]):
            if (other := entries.setdefault(entry.folder, entry)) is not entry:
                raise ValueError(
                    f"{other.run_id} and {entry.run_id} would be the same folder: choose by --only PATTERN"
                )
    if not entries:
        raise ValueError(f"no finished run of RULER or LongBench in {runs}/ matches {only}: see  ls {runs}")
    for name, entry in entries.items():
        write(entry, to / name)
    return list(entries.values())


def describe(r: Result, folder: Path) -> list[Entry]:
    """The folders of one run: one of RULER, one a task of LongBench, none of other benchmarks."""
    about, settings = read_json(folder / "run.json"), read_settings(folder / "config.yaml")
    facts = about.get("benchmark", {})
    lines = [line for line in read_samples(folder / "samples.jsonl") if "error" not in line]
    config = make_config(r, about, settings)
    if facts.get("benchmark") == "ruler":
        config |= {"dataset": "ruler", "data_dir": str(facts["made_for"] or facts["length"])}
        config |= {"query_aware": facts["question_aware"], "fraction": find_fraction(r)}
        return [Entry(r["run_id"], config, score_ruler(lines), lines, list_differences(facts))]
    if facts.get("benchmark") != "longbench":
        return []
    if r["config"]["limit"] is not None:
        raise ValueError(
            f"{r['run_id']}: kvpress names the share of a data set that was run, which is not known here of LongBench: "
            "export runs without limit="
        )
    entries = []
    for task in r["tasks"]:
        mine = [line for line in lines if line["task"] == task]
        own = {**config, "dataset": "longbench", "data_dir": task}
        entries.append(Entry(r["run_id"], own, percent(mine), mine, list_differences(facts)))
    return entries


def make_config(r: Result, about: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """kvpress's EvaluationConfig, in its order. compression_ratio is the share removed: as asked, or where a number of
    tokens was asked for, as measured."""
    budget = r["config"]["budget"]
    local = "model.path" in about.get("inputs", {})  # else it is an id on the hub
    kept = 1.0 if keeps_all(r) else r["budget"]["kept_share"] if budget is None else budget
    return {
        "dataset": "",
        "data_dir": "",
        "model": str(r["model"] if local else settings["model"]["path"]),
        "device": None,
        "press_name": "no_press" if keeps_all(r) else re.sub(r"[^\w.=+-]+", "_", name_row(r)),
        "compression_ratio": round(1 - kept, 6),
        "key_channel_compression_ratio": None,
        "fraction": 1.0,
        "max_new_tokens": None,
        "max_context_length": None,
        "query_aware": False,
        "needle_depth": None,
        "compression_interval": None,
        "target_size": None,
        "hidden_states_buffer_size": None,
        "output_dir": "./results",
        "log_level": "INFO",
        "model_kwargs": {"attn_implementation": None, "dtype": settings["model"].get("dtype", "auto")},
        "trust_remote_code": False,
        "press_init_command": without_places(about["command"]),
        "seed": r["config"]["seed"],
        "fp8": False,
    }


def find_fraction(r: Result) -> float:
    """The share of kvpress's samples of RULER that a run has of each of its tasks."""
    return min(1.0, float(np.mean([task["n"] for task in r["tasks"].values()])) / RULER_SAMPLES)


def list_differences(facts: Mapping[str, Any]) -> list[str]:
    found = []
    if facts["benchmark"] == "ruler" and facts["prepared"] != OWN_RULER:
        found.append(f"its samples are not kvpress's (benchmark.prepared={OWN_RULER})")
    if facts.get("not_rulers"):
        found.append(f"{', '.join(facts['not_rulers'])}: no tasks of RULER's")
    if facts["benchmark"] == "ruler" and (own := len(facts["tasks"]) - len(facts["not_rulers"])) < RULER_TASKS:
        found.append(f"{own} of RULER's {RULER_TASKS} tasks")
    if facts["benchmark"] == "longbench" and facts["protocol"] != SCORE:
        found.append(f"the prompts are not kvpress's (benchmark.protocol={SCORE})")
    if facts["first_token_may_end"]:
        found.append("an answer's first token may end it (benchmark.first_token_may_end=false: as in kvpress)")
    return found


def score_ruler(lines: Lines) -> dict[str, dict[str, float]]:
    tasks = sorted({line["task"] for line in lines})
    return {task: {"string_match": percent([line for line in lines if line["task"] == task])} for task in tasks}


def percent(lines: Lines) -> float:
    return round(100 * float(np.mean([line["scores"][SCORE] for line in lines])), 2)


def write(entry: Entry, folder: Path) -> None:
    """metrics.json last: kvpress takes a folder without it for unfinished."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", "answer", "predicted_answer", "compression_ratio"])
    for line in entry.lines:
        writer.writerow([line["task"], line["references"], line["prediction"], round(1 - line["kept_share"], 6)])
    notes = "".join(f"# {line}\n" for line in (f"run {entry.run_id}", *entry.differences))
    config = notes + yaml.safe_dump(entry.config, sort_keys=False, allow_unicode=True)
    write_atomically(folder / "predictions.csv", text.getvalue().encode())
    write_atomically(folder / "config.yaml", config.encode())
    write_atomically(folder / "metrics.json", (json.dumps(entry.metrics, indent=4) + "\n").encode())
