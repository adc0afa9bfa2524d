"""Which results stand in one table: those of one model on the same prompts, wherever its files lay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from evals.report.runs import group_by_experiment, label, read_results
from evals.text import result_table
from tests.as_typed import process
from tests.report.finished_runs import evaluate, write_evaluation

SCORES = {"vt": [0.5] * 40, "qa": [0.25] * 40}
PROMPTS = {"vt v1": "aaaa", "qa v1": "bbbb"}
NEW = {"prompts": PROMPTS, "references": {"vt v1": "cc", "qa v1": "dd"}, "weights_hash": "0123"}


def groups(runs: Path) -> dict[str, list[str]]:
    return {name: [label(r) for r in group] for name, group in group_by_experiment(read_results(runs)).items()}


def make_old(runs: Path, run_id: str, change: Mapping[str, Any]) -> None:
    """Turn a run into one of an older version: paths in its name, no label, neither weights nor answers recorded."""
    folder = runs / run_id
    result = json.loads((folder / "result.json").read_text())
    del result["label"]
    own = run_id + "__benchmark.sources=ruler-sources"
    result |= {"run_id": own, "experiment": result["experiment"] + "__benchmark.sources=ruler-sources"}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "run.json").write_text(json.dumps({"command": "", "prompts": PROMPTS}))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["benchmark"] = {k: v for k, v in config["benchmark"].items() if k != "question_aware"} | change
    config["job"] = {"_target_": "evals.harness.evaluate.evaluate"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    folder.rename(runs / own)


def test_older_runs_stand_beside_new_ones_of_the_same_prompts(tmp_path: Path) -> None:
    write_evaluation(tmp_path, SCORES, "method=full", about=NEW)
    write_evaluation(tmp_path, SCORES, "method=keydiff", about=NEW)
    old = write_evaluation(tmp_path, SCORES, "method=snapkv", about=NEW)
    make_old(tmp_path, old, {"sources": "ruler-sources"})
    assert groups(tmp_path) == {"tiny__ruler-512__n40__s0": ["full", "keydiff", "snapkv"]}
    done = process("--runs", str(tmp_path), "--against", "keydiff", program="report.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("snapkv") == 1
    assert "+0.0" in next(line for line in done.stdout.splitlines() if line.startswith("snapkv"))


def test_older_runs_of_other_scoring_do_not(tmp_path: Path) -> None:
    write_evaluation(tmp_path, SCORES, "method=full", about=NEW)
    old = write_evaluation(tmp_path, SCORES, "method=snapkv", about=NEW)
    make_old(tmp_path, old, {"sources": "ruler-sources", "scoring": "kvpress"})
    assert len(groups(tmp_path)) == 2


def test_other_prompts_answers_weights_or_tasks_are_another_table(tmp_path: Path) -> None:
    """Under one name: as of a chat template that says the date, and of two checkpoints that are called the same."""
    write_evaluation(tmp_path, SCORES, "method=full", about=NEW)
    others = [
        {"prompts": {**PROMPTS, "vt v1": "other"}},
        {"references": {**NEW["references"], "vt v1": "other"}},
        {"weights_hash": "4567"},
    ]
    for budget, other in enumerate(others, 1):
        write_evaluation(tmp_path, SCORES, "method=snapkv", f"budget=0.{budget}", about={**NEW, **other})
    write_evaluation(tmp_path, {"vt": [0.9] * 40}, "method=keydiff", about={**NEW, "prompts": {"vt v1": "aaaa"}})
    found = groups(tmp_path)
    assert sorted(found.values()) == [["full"], ["keydiff"], *[["snapkv"]] * 3]
    done = process("--runs", str(tmp_path), program="report.py")
    assert done.returncode == 0, done.stderr
    assert "**" not in (tmp_path / "report" / "report.md").read_text()


def test_an_older_run_without_weights_is_not_given_to_either_of_two_models(tmp_path: Path) -> None:
    write_evaluation(tmp_path, SCORES, "method=full", about=NEW)
    write_evaluation(tmp_path, SCORES, "method=keydiff", about={**NEW, "weights_hash": "4567"})
    old = write_evaluation(tmp_path, SCORES, "method=snapkv", about=NEW)
    make_old(tmp_path, old, {"sources": "ruler-sources"})
    assert sorted(groups(tmp_path).values()) == [["full"], ["keydiff"], ["snapkv"]]


def test_an_older_label_is_read_as_todays(tmp_path: Path) -> None:
    """It had every scorer's name, and the method= that was typed: both budgets of a method are one row."""
    names = {"method=keydiff": "lukv-keydiff-uniform-own", "method=expected_attention": "expected_attention-" * 2}
    for typed, older in names.items():
        write_evaluation(tmp_path, SCORES, typed, "budget=0.1", "scorer.eps=0.5" if "exp" in typed else "seed=0")
        old = write_evaluation(tmp_path, SCORES, typed, "budget=0.2", "scorer.eps=0.5" if "exp" in typed else "seed=0")
        result = json.loads((tmp_path / old / "result.json").read_text())
        words = [older.strip("-"), *result["label"].split()[1:]]
        (tmp_path / old / "result.json").write_text(
            json.dumps({**result, "method": older.split("-")[0], "label": " ".join(words)})
        )
    assert sorted(*groups(tmp_path).values()) == [
        *["expected_attention scorer.eps=0.5"] * 2,
        *["keydiff"] * 2,
    ]


def test_two_tables_of_one_name_are_two_rows(tmp_path: Path) -> None:
    for budget in ("0.1", "0.2"):
        write_evaluation(tmp_path, SCORES, "method=lukv", f"budget={budget}", about=NEW)
    (name,) = tmp_path.glob("*__b0.2__*")
    result = json.loads((name / "result.json").read_text())
    copy = tmp_path / f"{name.name}__01234567"
    copy.mkdir()
    for file in name.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    other = {**result, "run_id": copy.name, "config_hash": "0123456789abcdef"}
    (copy / "result.json").write_text(json.dumps(other))
    (labels,) = groups(tmp_path).values()
    assert labels == ["lukv", f"lukv {result['config_hash'][:8]}", "lukv 01234567"]


def test_an_id_that_was_cut_does_not_make_each_budget_a_method() -> None:
    start, end = "model__{}__jsonl-questions__s0__benchmark.data=", "x" * 200
    ids = [(start.format(f"lukv-keydiff__{b}") + end)[:191] + f"-0123456{i}" for i, b in enumerate(("b0.1", "b0.2"))]
    whole = start.replace("{}__", "") + "y"
    config = {"budget": 0.1, "scorer": "keydiff", "allocator": "budget_table", "protection": "equal"}
    about = {"method": "lukv", "experiment": whole, "config": config}
    assert {label({**about, "run_id": i}) for i in ids} == {"lukv"}


def test_a_task_that_the_reference_lacks_has_no_score_of_its() -> None:
    """Neither has the mean, which would be of other tasks."""
    result, _ = evaluate(SCORES, "method=snapkv")
    full, _ = evaluate({"vt": [1.0] * 3}, "method=full")
    rows = [line.split() for line in result_table(result, full).splitlines()]
    last = {row[0]: row[-1] for row in rows if row and row[0] in ("vt", "qa", "mean")}
    assert last == {"vt": "100.0", "qa": "-", "mean": "-"}
    whole = [line.split() for line in result_table(result, evaluate(SCORES, "method=full")[0]).splitlines()]
    assert {row[0]: row[-1] for row in whole if row and row[0] in ("vt", "qa", "mean")} == {
        "vt": "50.0", "qa": "25.0", "mean": "37.5",
    }  # fmt: skip
