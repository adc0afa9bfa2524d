"""calibration=authors: a file of the authors' shape, made here."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from evals.authors import Authors
from lukv.budgets.table import BudgetTable
from lukv.model import load
from tests.evals.conftest import read_jsonl

WORDS = ["the", "old", "ship", "came", "back", "over", "winter"]


def write_story(path: Path, sentences: int = 30, questions: int = 3) -> Path:
    """One story of people and what they carry, and questions about it."""
    draw = random.Random(0)
    people = [f"{name}{i}" for i, name in enumerate(["Ada", "Ben", "Cleo", "Dan"] * sentences)][:sentences]
    told = [f"{name} had {draw.randrange(100)} coins when {' '.join(draw.sample(WORDS, 6))}." for name in people]
    asked = [f"How many coins had {name}?" for name in draw.sample(people, questions)]
    path.write_text(json.dumps({"context": " ".join(told), "questions": asked}) + "\n", encoding="utf-8")
    return path


def test_a_table_is_made_as_the_authors_did(command, settings, tmp_path):
    story = write_story(tmp_path / "novel.jsonl")
    where = [s for s in settings if not s.startswith(("benchmark", "limit"))]
    assert command("job=calibrate", f"calibration=authors:{story}", "calibration.horizon=4", *where) == 0
    (table,) = tmp_path.glob("random__keydiff__calibrate-authors-novel*/tables/keydiff.safetensors")
    about = BudgetTable.load(table).metadata
    assert about["samples"] == 3
    wanted = {"continuation": "sampled", "temperature": 0.7, "first_row": False, "own_sampling": True, "horizon": 4}
    assert about["oracle"].items() >= wanted.items()
    assert about["sampling"] == {"top_k": 50, "top_p": 1.0, "repetition_penalty": 1.0}
    assert about["data"]["benchmark"] == "authors-novel"
    (row,) = read_jsonl(story)
    assert about["mean_tokens"] == 1 + len(row["context"])  # BOS, and a token a character


def test_the_prompt_is_plain_text_with_bos(tmp_path, model):
    story = write_story(tmp_path / "novel.jsonl")
    (row,) = read_jsonl(story)
    loaded = load(model)
    (task,) = Authors(str(story)).tasks(loaded.tokenizer)
    assert len(task.samples) == 3
    for sample, question in zip(task.samples, row["questions"], strict=True):
        context, asked = loaded.prompt_ids(
            sample.context, sample.question, sample.answer_prefix, chat=sample.chat, layout=sample.layout
        )
        plain = loaded.tokenizer.encode(row["context"], add_special_tokens=False)
        assert context == [loaded.tokenizer.bos_token_id, *plain]
        assert asked == loaded.tokenizer.encode(question + "回答：", add_special_tokens=False)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"context": "a story"}', "line 1 has no 'questions'"),
        ('{"context": "a story", "questions": []}', "line 1: 'questions' must be a list of strings"),
        ('{"context": "", "questions": ["a"]}', "line 1: 'context' is empty"),
        ('{"context": "a story", "questions": [3]}', "line 1: 'questions' must be a list of strings"),
    ],
)
def test_a_file_of_another_shape_is_one_line(content, says, tmp_path):
    path = tmp_path / "novel.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=says):
        list(Authors(str(path)).tasks(SimpleNamespace(bos_token=None)))


def test_the_file_must_be_named_and_there(command, settings, tmp_path, capsys):
    where = [s for s in settings if not s.startswith(("benchmark", "limit"))]
    assert command("job=calibrate", "calibration=authors", *where) == 2
    assert "calibration.path" in capsys.readouterr().err
    assert command("job=calibrate", f"calibration=authors:{tmp_path}/none.jsonl", *where) == 2
    assert "is missing" in capsys.readouterr().err
