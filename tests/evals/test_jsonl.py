"""A user's own questions, and what is said of bad files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.jsonl import Jsonl
from evals.rows import read_rows
from tests.evals.conftest import Words

GOOD = {"context": "Ann lives in Oslo.", "question": "Where?", "answers": ["Oslo"]}


def write(path: Path, *rows: dict) -> Path:
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def test_questions_become_samples(tmp_path: Path, words: Words) -> None:
    other = GOOD | {"task": "hard", "max_new_tokens": 5, "answer_prefix": "In", "id": "q7"}
    benchmark = Jsonl(str(write(tmp_path / "mine.jsonl", GOOD, other, GOOD)), metric="exact_match", max_new_tokens=9)
    tasks = {task.name: task for task in benchmark.tasks(words)}
    assert benchmark.name == "jsonl-mine"
    assert [sample.id for sample in tasks["mine"].samples] == ["mine-1", "mine-3"]
    (sample,) = tasks["hard"].samples
    assert (sample.id, sample.max_new_tokens, sample.answer_prefix) == ("hard-q7", 5, "In")
    assert tasks["hard"].metric("Oslo\n", sample) == {"exact_match": 1.0}
    (limited,) = [task for task in benchmark.tasks(words, 1) if task.name == "mine"]
    assert len(limited.samples) == 1
    assert len(benchmark.facts()["sha256"]) == 16


def test_question_aware(tmp_path: Path, words: Words) -> None:
    (task,) = Jsonl(str(write(tmp_path / "a.jsonl", GOOD)), question_aware=True).tasks(words)
    assert (task.samples[0].context, task.samples[0].question) == ("Ann lives in Oslo.Where?", "")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        (json.dumps(GOOD) + "\n{broken", "line 2 is not JSON"),
        (json.dumps(GOOD) + "\n\n" + json.dumps(GOOD), "line 2 is not JSON"),
        ('{"context": "a", "question": "b"}', "line 1 has no 'answers'; it has: context, question"),
        ('{"context": null, "question": "b", "answers": ["c"]}', "'context' is null, expected a string"),
        ('{"context": "a", "question": "b", "answers": "c"}', "'answers' is a string, expected a list"),
        ('{"context": "a", "question": "b", "answers": [1]}', "'answers' must be a list of strings"),
        (json.dumps(GOOD | {"max_new_tokens": 0}), "'max_new_tokens' is 0"),
        (json.dumps(GOOD | {"max_new_tokens": True}), "'max_new_tokens' is true or false, expected an integer"),
        (json.dumps(GOOD | {"task": 3}), "'task' is an integer, expected a string"),
        ('"text"', "line 1 is a string, a JSON object is expected"),
        ("3", "line 1 is an integer"),
    ],
)
def test_bad_files_are_reported_by_file_and_line(content: str, message: str, tmp_path: Path, words: Words) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        list(Jsonl(str(path)).tasks(words))
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_not_utf8_and_missing(tmp_path: Path, words: Words) -> None:
    path = tmp_path / "latin.jsonl"
    path.write_bytes(json.dumps(GOOD).encode() + b"\n" + '{"context": "é"}'.encode("latin-1"))
    with pytest.raises(ValueError, match=r"line 2 is not UTF-8 \(byte 14"):
        list(Jsonl(str(path)).tasks(words))
    with pytest.raises(FileNotFoundError, match="is missing: a jsonl file is expected"):
        list(Jsonl(str(tmp_path / "none.jsonl")).tasks(words))
    with pytest.raises(FileNotFoundError, match="is a folder"):
        list(Jsonl(str(tmp_path)).tasks(words))


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path, words: Words) -> None:
    path = tmp_path / "windows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode() + b"\r\n")
    (task,) = Jsonl(str(path)).tasks(words)
    assert len(task.samples) == 2


def test_unknown_metric_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"benchmark\.metric=qaf1.*did you mean qa_f1") as error:
        Jsonl("x.jsonl", metric="qaf1")
    assert "\n" not in str(error.value)


@given(st.binary(max_size=80))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_rows_or_one_line(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.jsonl"
    path.write_bytes(content)
    complaint, rows = "", []
    try:
        rows = read_rows(path, {})
    except ValueError as error:
        complaint = str(error)
    assert "\n" not in complaint
    assert bool(complaint) != bool(rows)
    assert all(isinstance(row, dict) for row in rows)
