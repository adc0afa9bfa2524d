"""The same question has the same answer: again, resumed, in other batches, in another order, after other samples."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tests.as_typed import Command
from tests.faults.conftest import jsonl, lines, only, question

SAME = ("prediction", "score", "scores", "kept", "cache_bytes", "context_tokens")
METHODS = ["full", "snapkv", "keydiff", "expected_attention", "adakv", "pyramidkv", "streaming", "random"]


@pytest.fixture
def exact(short: list[str], tmp_path: Path) -> list[str]:
    """Contexts of different lengths, two of them asked twice; float64, where batches of any size round alike."""
    rows = [question(i, words=40 + 9 * (i % 4)) for i in range(6)]
    rows += [{**rows[i], "question": "Which other?", "id": f"again-{i}"} for i in (1, 4)]
    rows = [{"id": f"q{i}", "task": "asked", **row} for i, row in enumerate(rows)]
    jsonl(tmp_path / "questions.jsonl", rows)
    return [*short, "model.dtype=float64"]


def answers(folder: Path) -> dict[str, Any]:
    return {line["id"]: {key: line[key] for key in SAME} for line in lines(folder)}


def test_the_same_command_twice(command: Command, exact: list[str], tmp_path: Path) -> None:
    """Identical but for the times: in order, to the byte."""
    found = []
    for name in ("first", "second"):
        assert command(*exact, "method=snapkv", f"runs={tmp_path}/{name}") == 0
        text = (only(tmp_path / name) / "samples.jsonl").read_text().splitlines()
        found.append([json.dumps({**json.loads(line), "times": None}) for line in text])
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "method", [m if m in ("snapkv", "adakv") else pytest.param(m, marks=pytest.mark.slow) for m in METHODS]
)
def test_batches_and_resume_points_change_nothing(
    method: str, command: Command, exact: list[str], tmp_path: Path
) -> None:
    args = [*exact, f"method={method}"]
    for size in (1, 3, 8):
        assert command(*args, f"batch_size={size}", f"runs={tmp_path}/size{size}") == 0
    expected = answers(only(tmp_path / "size1"))
    assert len(expected) == 8
    assert answers(only(tmp_path / "size3")) == expected
    assert answers(only(tmp_path / "size8")) == expected
    folder = only(tmp_path / "size3")
    text = (folder / "samples.jsonl").read_text().splitlines(keepends=True)
    for done in (1, 4, 7):  # as if stopped after so many samples
        (folder / "result.json").unlink()
        (folder / "samples.jsonl").write_text("".join(text[:done]))
        assert command(*args, "batch_size=3", f"runs={tmp_path}/size3") == 0
        assert answers(folder) == expected


def test_samples_in_any_order(command: Command, exact: list[str], tmp_path: Path) -> None:
    """No sample leaves anything behind for the next: shuffled, reversed, and each alone."""
    path = tmp_path / "questions.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    args = [*exact, "method=snapkv", "batch_size=2"]
    assert command(*args) == 0
    expected = answers(only(tmp_path / "runs"))
    shuffled = random.Random(1).sample(rows, len(rows))
    for name, order in {"reversed": rows[::-1], "shuffled": shuffled, "alone": rows[3:4]}.items():
        other = jsonl(tmp_path / f"{name}.jsonl", order)
        assert command(*args, f"benchmark.data={other}", f"runs={tmp_path}/{name}") == 0
        found = answers(only(tmp_path / name))
        assert found == {key: expected[key] for key in found}
        assert len(found) == len(order)


def test_the_order_of_a_sweep_changes_nothing(command: Command, exact: list[str], tmp_path: Path) -> None:
    """Methods and budgets one way round, the other way round, and one of them alone in a process of its own state."""
    orders = {"there": ("snapkv,keydiff,random", "0.2,0.5"), "back": ("random,keydiff,snapkv", "0.5,0.2")}
    found = {}
    for name, (methods, budgets) in orders.items():
        assert command("-m", *exact, f"method={methods}", f"budget={budgets}", f"runs={tmp_path}/{name}") == 0
        found[name] = {folder.name: answers(folder) for folder in (tmp_path / name).iterdir() if folder.is_dir()}
    assert len(found["there"]) == 6
    assert found["there"] == found["back"]
    assert command(*exact, "method=keydiff", "budget=0.5", f"runs={tmp_path}/alone") == 0
    assert answers(only(tmp_path / "alone")) == found["there"][only(tmp_path / "alone").name]
