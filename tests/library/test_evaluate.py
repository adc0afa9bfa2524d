"""lukv.evaluate gives the scores of run.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import lukv
from evals.ruler import Ruler
from lukv.model import LoadedModel
from tests.as_typed import Command

BENCHMARK = {"benchmark.length": 1200, "benchmark.tasks": ["niah_single_1", "niah_multikey_2"]}


@pytest.fixture(scope="module")
def loaded(model: Path) -> LoadedModel:
    return lukv.load_model(model, device="cpu")


def test_the_rows_are_run_pys_results(
    loaded: LoadedModel, command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longest = loaded.tokenizer.model_max_length
    model, words = loaded.model, loaded.tokenizer
    rows = lukv.evaluate(model, words, "ruler", ["snapkv", "full"], [0.2, 0.5], limit=2, settings=BENCHMARK)
    assert [(row["method"], row["budget"]) for row in rows] == [("snapkv", 0.2), ("snapkv", 0.5), ("full", 1.0)]
    assert words.model_max_length == longest
    assert command("-m", *settings, "method=snapkv", "budget=0.2,0.5") == 0
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")]
    found: dict[tuple[str, float], Any] = {(r["method"], r["budget"]["asked"]): r for r in results}
    assert len(found) == len(rows)
    for row in rows:
        result = found[row["method"], row["budget"]]
        assert [row["score"], row["ci95"], row["tasks"]] == [result["score"], result["ci95"], result["tasks"]]
        assert [row["kept_share"], row["cache_bytes"]] == [result["budget"][k] for k in ("kept_share", "cache_bytes")]
        assert row["n"] == 4


def test_objects_instead_of_names(loaded: LoadedModel) -> None:
    benchmark = Ruler(length=1200, tasks=["niah_single_1"])
    mine = lukv.method("snapkv", 0.9, settings={"scorer.window": 16})
    (row,) = lukv.evaluate(loaded.model, loaded.tokenizer, benchmark, [mine], [0.3], limit=1)
    assert (row["method"], row["n"]) == ("snapkv", 1)
    assert row["kept_share"] == pytest.approx(0.3, abs=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"benchmark": "rulr"}, "benchmark=rulr is not known. Did you mean 'ruler'"),
        ({"methods": ["snapk"]}, "Did you mean 'snapkv'"),
        ({"budgets": [2]}, "budget=2 is not a share"),
        ({"methods": []}, "nothing to evaluate"),
        ({"budgets": []}, "nothing to evaluate"),
        ({"settings": {"benchmark.lenght": 5}}, "Did you mean 'benchmark.length'"),
        ({"settings": {"length": 5}}, "'length' is no value of a part"),
        ({"benchmark": Ruler(), "settings": {"benchmark.length": 5}}, "this one is an object"),
        ({"settings": {"benchmark.length": 8192}}, "its samples have 8192 tokens, random takes 4096"),
    ],
)
def test_what_cannot_be_evaluated(arguments: dict, says: str, loaded: LoadedModel) -> None:
    asked = {"benchmark": "ruler", "methods": ["snapkv"], "budgets": [0.2], "limit": 1, **arguments}
    with pytest.raises(ValueError, match=says):
        lukv.evaluate(loaded.model, loaded.tokenizer, **asked)
