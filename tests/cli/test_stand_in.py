"""The model that these tests run on can tell right from wrong: what it answers depends on all that it is asked."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import pytest

from tests.as_typed import Command

CONTEXTS = [f"Note {number}. " + f"The door of room {number} is {colour}. " * 12 for number, colour in
            enumerate(("red", "green", "blue"))]  # fmt: skip
QUESTIONS = ["Which door?", "What colour is it?", "How many rooms?"]


@pytest.mark.parametrize("method", ["full", "snapkv"])
def test_each_context_and_question_has_an_answer_of_its_own(
    method: str, command: Command, model: Path, tmp_path: Path
) -> None:
    rows = [{"context": c, "question": q, "answers": ["red"]} for c, q in product(CONTEXTS, QUESTIONS)]
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = [f"benchmark.data={data}", "benchmark.max_new_tokens=8", f"runs={tmp_path}/runs", "reference=null"]
    assert command("model=hf", f"model.path={model}", "benchmark=jsonl", *asked, f"method={method}", "budget=0.3") == 0
    (path,) = tmp_path.glob("runs/*/samples.jsonl")
    answers = [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
    assert len(set(answers)) == len(rows), answers


def test_so_it_has_in_the_smallest_evaluation(command: Command, settings: list[str], tmp_path: Path) -> None:
    assert command(*settings, "method=full") == 0
    (path,) = tmp_path.glob("*/samples.jsonl")
    answers = [json.loads(line)["prediction"] for line in path.read_text().splitlines()]
    assert len(set(answers)) == 4, answers
