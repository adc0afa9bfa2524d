"""Scores against the original programs', from the small cases in tests/golden: what a clean clone can check."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.longbench import score_predictions
from evals.longbench.catalog import CATALOG
from evals.longbench.score import Scorer
from evals.ruler import Ruler
from evals.ruler.suite import TASKS
from evals.task import Sample
from tests.evals.conftest import read_jsonl

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("task", CATALOG)
def test_longbench_scores(task: str) -> None:
    cases = [case for case in read_jsonl(GOLDEN / "longbench_metrics.jsonl") if case["dataset"] == task]
    assert cases
    for case in cases:
        answers = [str(answer) for answer in case["answers"]]
        scores = Scorer(task)(case["prediction"], answers, case["all_classes"] or ())
        assert scores["official"] == case["score"], case["tag"]
        assert round(100 * scores["kvpress"], 2) == case["score_kvpress_pct"], case["tag"]


def test_longbench_e_buckets(tmp_path: Path) -> None:
    cases = json.loads((GOLDEN / "longbench_e_buckets.json").read_text(encoding="utf-8"))
    assert cases
    for case in cases:
        columns = zip(case["predictions"], case["answers"], case["lengths"], strict=True)
        rows = [
            {"pred": pred, "answers": answers, "length": length, "all_classes": case["all_classes"]}
            for pred, answers, length in columns
        ]
        path = tmp_path / f"{case['dataset']}_e.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        scored = {each.task: each.scores["official"] for each in score_predictions(path, e=True)}
        expected = {f"{case['dataset']}_{name}": score for name, score in case["scores"].items() if score is not None}
        assert scored == expected, case["tag"]


@pytest.mark.parametrize(
    "case", list(read_jsonl(GOLDEN / "ruler_metrics.jsonl")), ids=lambda case: f"{case['task']}: {case['tag']}"
)
def test_ruler_scores(case: dict[str, Any]) -> None:
    score = Ruler().metric(TASKS[case["task"]].family)
    scores = [
        score(prediction, Sample("x", case["task"], "", "", tuple(references), 1))
        for prediction, references in zip(case["predictions"], case["references"], strict=True)
    ]
    for name, expected in (("official", case["score"]), ("kvpress", case["score_kvpress"])):
        assert round(100 * sum(each[name] for each in scores) / len(scores), 2) == expected
