"""A run with a larger limit= begins with the samples of a finished one, if it is the same experiment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.as_typed import Command

FEW = ["method=snapkv", "budget=0.2"]


@pytest.fixture
def few(command: Command, settings: list[str], tmp_path: Path) -> Path:
    """A finished run of two samples of each of two tasks."""
    assert command(*settings, *FEW) == 0
    [folder] = tmp_path.glob("*__snapkv__b0.2__*")
    return folder


def lines(folder: Path) -> dict[str, dict]:
    return {s["id"]: s for s in map(json.loads, (folder / "samples.jsonl").read_text().splitlines())}


def record(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def find(few: Path, limit: str) -> Path:
    return few.parent / few.name.replace("__n2__", f"__n{limit}__" if limit != "null" else "__")


def test_larger_limit_goes_on_from_a_smaller_one(few: Path, command: Command, settings: list[str]) -> None:
    known = lines(few)
    assert command(*settings, *FEW, "limit=3") == 0
    more = lines(find(few, "3"))
    assert len(more) == 6
    assert {i: more[i] for i in known} == known  # their times too: they were not answered again
    assert record(find(few, "3"))["taken_over"] == few.name
    assert record(next(few.parent.glob("*__full__*__n3__*")))["taken_over"].startswith("random__full__")
    result = json.loads((find(few, "3") / "result.json").read_text())
    assert {task["n"] for task in result["tasks"].values()} == {3}
    assert (few / "result.json").exists()


def test_what_it_computes_is_what_a_new_run_would(few: Path, command: Command, settings: list[str]) -> None:
    exact = [*settings, *FEW, "model.dtype=float64", "batch_size=1"]
    assert command(*exact, "limit=1") == 0
    assert command(*exact, "limit=2") == 0
    assert command(*exact, "limit=2", f"runs={few.parent}/anew") == 0
    name = next(few.parent.glob("*__snapkv__*__n2__*float64*")).name
    grown, anew = (lines(few.parent / place / name) for place in (".", "anew"))
    assert "taken_over" in record(few.parent / name)
    assert "taken_over" not in record(few.parent / "anew" / name)
    assert {i: (s["prediction"], s["kept"], s["score"]) for i, s in grown.items()} == {
        i: (s["prediction"], s["kept"], s["score"]) for i, s in anew.items()
    }


@pytest.mark.parametrize("other", ["budget=0.3", "scorer.window=16", "seed=1"])
def test_another_experiment_is_not_taken_over(few: Path, command: Command, settings: list[str], other: str) -> None:
    assert command(*settings, *FEW, "limit=3", other) == 0
    new = [p for p in few.parent.glob("*__snapkv*__n3__*") if p != few]
    assert ["taken_over" in record(p) for p in new] == [False]


def test_unfinished_or_changed_is_not_taken_over(few: Path, command: Command, settings: list[str]) -> None:
    about = record(few)
    about["prompts"] = dict.fromkeys(about["prompts"], "0" * 16)
    (few / "run.json").write_text(json.dumps(about))
    assert command(*settings, *FEW, "limit=3") == 0
    assert "taken_over" not in record(find(few, "3"))
    (find(few, "3") / "result.json").unlink()
    assert command(*settings, *FEW, "limit=4") == 0
    assert "taken_over" not in record(find(few, "4"))


def test_the_largest_smaller_one_is_taken(few: Path, command: Command, settings: list[str]) -> None:
    for limit in ("1", "3"):
        assert command(*settings, *FEW, f"limit={limit}") == 0
    assert "taken_over" not in record(find(few, "1"))
    assert record(find(few, "3"))["taken_over"] == few.name
    assert command(*settings, *FEW, "limit=4") == 0
    assert record(find(few, "4"))["taken_over"] == find(few, "3").name


def test_kept_tokens_are_recorded_where_they_are_asked_for(few: Path, command: Command, settings: list[str]) -> None:
    assert command(*settings, *FEW, "limit=3", "record_kept=1") == 0
    recorded = [i for i, s in lines(find(few, "3")).items() if "kept_tokens" in s]
    assert len(recorded) == 2
    assert record(find(few, "3"))["taken_over"] == few.name
