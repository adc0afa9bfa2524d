"""Runs in the layout of kvpress's leaderboard. What kvpress reads is restated from its evaluate.py and scorers."""

from __future__ import annotations

import ast
import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals.report.export import export
from evals.ruler import Ruler
from tests.as_typed import process
from tests.report.finished_runs import write_evaluation

FACTS = {
    **{"benchmark": "ruler", "length": 4096, "made_for": 4096, "prepared": "simonjegou/ruler", "question_aware": False},
    **{"tasks": [str(i) for i in range(13)], "not_rulers": [], "left_out": {}, "first_token_may_end": False},
}
OWN = ("benchmark.length=4096", "benchmark.prepared=simonjegou/ruler")
ANSWERS = {"niah_single_1": ["the num\nber 12", "12345"], "qa_1": ["blue", "\x00Red."]}
RIGHT = {"niah_single_1": ["number 12", "12345"], "qa_1": ["red", "red"]}


def write_run(runs: Path, *overrides: str, answers: dict[str, list[str]] = ANSWERS, **facts: Any) -> str:
    """A finished run whose samples have these answers, scored by the benchmark itself."""
    metric = {task: Ruler(length=4096, tasks=[task]).metric(task.split("_")[0]) for task in answers}
    zeros = {task: [0.0] * len(texts) for task, texts in answers.items()}
    name = write_evaluation(
        runs, zeros, *OWN, *overrides, about={"benchmark": FACTS | facts, "inputs": {"model.path": "x"}}
    )
    path = runs / name / "samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        task, number = line["id"].rsplit("-", 1)
        line["prediction"], line["references"] = answers[task][int(number)], [RIGHT[task][int(number)]]
        sample = type("Sample", (), {"references": line["references"]})()
        line["scores"], line["kept_share"] = metric[task](line["prediction"], sample), 0.2001  # type: ignore[arg-type]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return name


def kvpress_score(rows: list[dict[str, str]]) -> dict[str, dict[str, float]]:
    """kvpress's benchmarks/ruler/calculate_metrics.py, restated: control characters go, then case-insensitive
    containment, of any answer for qa tasks and the share of all answers for the others; per cent, two decimals."""
    scores = {}
    for task in sorted({row["task"] for row in rows}):
        each = []
        for row in (row for row in rows if row["task"] == task):
            text = "".join(c for c in row["predicted_answer"].strip() if ord(c) >= 32).strip().lower()
            found = [answer.lower() in text for answer in ast.literal_eval(row["answer"])]
            each.append(max(found) if task.startswith("qa") else sum(found) / len(found))
        scores[task] = {"string_match": round(100 * sum(each) / len(each), 2)}
    return scores


def read(folder: Path) -> tuple[list[dict[str, str]], Any, dict[str, Any]]:
    with (folder / "predictions.csv").open(newline="") as f:
        rows = list(csv.DictReader(f))
    return rows, json.loads((folder / "metrics.json").read_text()), yaml.safe_load((folder / "config.yaml").read_text())


def test_a_run_of_ruler(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "method=snapkv", "budget=0.2")
    (entry,) = export(tmp_path / "runs", "*", tmp_path / "out")
    assert entry.folder == "ruler__4096__tiny__snapkv__0.80__fraction0.004"
    rows, metrics, config = read(tmp_path / "out" / entry.folder)
    assert [row["predicted_answer"] for row in rows] == [text for texts in ANSWERS.values() for text in texts]
    assert metrics == kvpress_score(rows) == {"niah_single_1": {"string_match": 100.0}, "qa_1": {"string_match": 50.0}}
    assert {row["compression_ratio"] for row in rows} == {"0.7999"}
    assert config["compression_ratio"] == 0.8
    assert config["press_init_command"].startswith("python run.py")
    assert entry.differences == []
    # every field of kvpress's EvaluationConfig but the two that its save_config drops where they are not set
    assert list(config) == [
        *("dataset", "data_dir", "model", "device", "press_name", "compression_ratio", "key_channel_compression_ratio"),
        *("fraction", "max_new_tokens", "max_context_length", "query_aware", "needle_depth", "compression_interval"),
        *("target_size", "hidden_states_buffer_size", "output_dir", "log_level", "model_kwargs", "trust_remote_code"),
        *("press_init_command", "seed", "fp8"),
    ]


def test_the_full_cache_is_no_press(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "method=full", question_aware=True)
    (entry,) = export(tmp_path / "runs", "*", tmp_path / "out")
    assert entry.folder == "ruler__4096__tiny__no_press__0.00__fraction0.004__query_aware"


def test_a_model_of_the_hub_has_its_id(tmp_path: Path) -> None:
    name = write_run(tmp_path / "runs", "method=snapkv", "model=llama-3.1-8b-instruct", "budget_tokens=512")
    about = tmp_path / "runs" / name / "run.json"
    about.write_text(about.read_text().replace("model.path", "model.other"))
    (entry,) = export(tmp_path / "runs", "*", tmp_path / "out")
    assert entry.config["model"] == "meta-llama/Llama-3.1-8B-Instruct"
    assert entry.folder.startswith("ruler__4096__meta-llama--Llama-3.1-8B-Instruct__snapkv__")


def test_what_is_not_as_in_kvpress_is_said(tmp_path: Path) -> None:
    changed = {"prepared": None, "first_token_may_end": True, "not_rulers": ["vt_plain"]}
    write_run(tmp_path / "runs", "method=snapkv", **changed)
    (entry,) = export(tmp_path / "runs", "*", tmp_path / "out")
    assert len(entry.differences) == 4
    text = (tmp_path / "out" / entry.folder / "config.yaml").read_text()
    assert all(f"# {line}\n" in text for line in entry.differences)


def test_longbench_is_a_folder_a_task(tmp_path: Path) -> None:
    facts = {"benchmark": "longbench", "protocol": "kvpress"}
    name = write_run(tmp_path / "runs", "method=snapkv", "budget=0.5", **facts)
    with pytest.raises(ValueError, match="export runs without limit="):
        export(tmp_path / "runs", "*", tmp_path / "out")
    result = tmp_path / "runs" / name / "result.json"
    result.write_text(result.read_text().replace('"limit": 40', '"limit": null'))
    entries = export(tmp_path / "runs", "*", tmp_path / "out")
    tasks = {entry.config["data_dir"]: entry for entry in entries}
    assert sorted(tasks) == sorted(ANSWERS)
    assert tasks["qa_1"].folder == "longbench__qa_1__tiny__snapkv__0.50"
    rows, metrics, _ = read(tmp_path / "out" / tasks["qa_1"].folder)
    assert metrics == 50.0
    assert len(rows) == 2


def test_two_runs_for_one_folder_are_refused(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "runs", "method=snapkv", f"seed={seed}")
    with pytest.raises(ValueError, match="would be the same folder: choose by --only PATTERN"):
        export(tmp_path / "runs", "*", tmp_path / "out")
    assert len(export(tmp_path / "runs", "*__s1*", tmp_path / "out")) == 1


def test_as_typed(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "method=snapkv", prepared=None)
    places = ("--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "out"))
    done = process("export", "--format", "kvpress", *places, program="report.py")
    assert done.returncode == 0, done.stderr
    assert "its samples are not kvpress's" in done.stdout
    assert len(list((tmp_path / "out").glob("*/metrics.json"))) == 1
    for wrong, said in (
        (("--format", "kvpres"), "invalid choice"),
        (("--format", "kvpress", "--only", "x*"), "no finished run"),
    ):
        done = process("export", *wrong, *places, program="report.py")
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
