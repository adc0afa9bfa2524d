"""`python report.py score`: prediction logs in LongBench's format, scored without a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.longbench.second_opinion import compare_rouge
from tests.as_typed import ROOT, process

PUBLISHED = ROOT.parent / "shared" / "data" / "longbench_preds" / "llama2-7b-chat"


def test_a_log_is_scored_by_name(tmp_path: Path) -> None:
    rows = [
        {"pred": "Paris", "answers": ["Paris"], "all_classes": None, "length": 5},
        {"pred": "Rome", "answers": ["Oslo"], "all_classes": None, "length": 5},
    ]
    path = tmp_path / "hotpotqa.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = process("score", "--predictions", str(path), program="report.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[:3] == ["hotpotqa", "2", "50.00"]


def test_a_published_number_comes_out(shared: Path) -> None:
    published = shared / "data" / "longbench_preds" / "llama2-7b-chat" / "lcc.jsonl"
    done = process("score", "--predictions", str(published), program="report.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split()[:3] == ["lcc", "500", "54.57"]


def test_rouge_score_gives_a_second_opinion(tmp_path: Path) -> None:
    """LongBench counts "the" once and tells "Cat," from "cat"; rouge-score counts it four times and does not."""
    rows = [
        {"pred": "the the the the", "answers": ["the report"], "all_classes": None, "length": 5},
        {"pred": "The Cat, sat", "answers": ["the cat sat"], "all_classes": None, "length": 5},
    ]
    path = tmp_path / "gov_report.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ((task, ours, theirs),) = compare_rouge(tmp_path)
    assert task == "gov_report"
    assert ours == pytest.approx(100 * (2 / 3 + 1 / 3) / 2)
    assert theirs == pytest.approx(100 * (1 / 3 + 1) / 2)
    done = process("score", "--predictions", str(path), program="report.py")
    assert done.returncode == 0, done.stderr
    (line,) = [line.split() for line in done.stdout.split("LongBench's")[1].splitlines() if "gov_report" in line]
    assert line == ["gov_report", "50.00", "66.67"]


def test_what_cannot_be_scored_is_one_line(tmp_path: Path) -> None:
    for options in (
        ["--predictions", str(tmp_path / "lcc.jsonl")],
        ["--predictions", str(tmp_path), "--protocol", "x"],
    ):
        done = process("score", *options, program="report.py")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
