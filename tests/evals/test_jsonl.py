"""A user's own questions, and what is said of bad files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evals.jsonl import METRICS, Jsonl
from evals.rows import is_blank, read_rows
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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("blank", ["", " ", "\n\t", "\u200b", "\u00a0\ufeff", "\x00"])
def test_an_empty_reference_is_refused_by_file_and_line(metric: str, blank: str, tmp_path: Path, words: Words) -> None:
    path = write(tmp_path / "e.jsonl", GOOD, GOOD | {"answers": ["Paris", blank]})
    with pytest.raises(ValueError, match=r"e\.jsonl line 2: 'answers' holds an empty answer") as error:
        list(Jsonl(str(path), metric=metric).tasks(words))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metric", "answer"),
    [
        ("qa_f1", "A"),
        ("qa_f1", "-"),
        ("qa_f1", "The"),
        ("qa_f1_zh", "。"),
        ("rouge_l", "."),
        ("google_rouge_l", "北京"),
        ("code_similarity", "# nothing but a comment"),
    ],
)
def test_a_reference_of_which_the_metric_leaves_nothing_is_refused(
    metric: str, answer: str, tmp_path: Path, words: Words
) -> None:
    path = write(tmp_path / "e.jsonl", GOOD, GOOD | {"answers": ["Oslo", answer]})
    with pytest.raises(ValueError, match=r"e\.jsonl line 2: .*scores the right answer .* 0.*metric=answer_f1") as error:
        list(Jsonl(str(path), metric=metric).tasks(words))
    assert "\n" not in str(error.value)
    (task,) = Jsonl(str(path)).tasks(words)  # the default metric knows it
    sample = task.samples[1]
    for right in ("Oslo", answer):
        assert task.metric(right, sample) == {"answer_f1": 1.0}


@pytest.mark.parametrize("metric", METRICS)
def test_the_best_of_several_references_counts(metric: str) -> None:
    first, second = "Bergen fjord", "Oslo harbour"
    scores = [METRICS[metric](prediction, [first, second]) for prediction in (first, second)]
    assert scores == ([0.5, 0.5] if metric == "string_match_all" else pytest.approx([1.0, 1.0]))
    assert METRICS[metric]("xyz", [first, second]) < 0.3


@given(st.text(min_size=1, max_size=30) | st.sampled_from(["A", "the", "-", "C++", "...", "(b)", "'", "an a", "١٢"]))
@settings(max_examples=300, deadline=None)
def test_the_right_answer_always_scores_one_under_the_default_metric(answer: str) -> None:
    assert is_blank(answer) or METRICS["answer_f1"](answer, [answer]) == 1.0


@pytest.mark.parametrize(
    ("prediction", "reference", "score"),
    [
        ("A.", "A", 1.0),
        ("(a)", "A", 1.0),
        ("The answer is B", "B", 0.5),
        ("B", "A", 0.0),
        ("the Hague", "Hague", 1.0),
        ("C", "C++", 0.0),
        ("C#", "C++", 0.0),
        ("5", "-5", 0.0),
        ("\u22125", "-5", 1.0),
        ("１２３", "123", 1.0),
        ("cafe\u0301", "caf\u00e9", 1.0),
        ("It\u2019s", "it's", 1.0),
        ("New\u00a0York", "New York", 1.0),
        ("New\u200b York", "New York", 1.0),
        ("STRASSE", "Stra\u00dfe", 1.0),
        ("**Paris**!", "Paris", 1.0),
        (".NET", "NET", 0.0),
    ],
)
def test_answer_f1_knows_variants_from_other_answers(prediction: str, reference: str, score: float) -> None:
    assert METRICS["answer_f1"](prediction, [reference]) == score


def test_long_right_answers_are_not_scored_zero() -> None:
    """LongBench's zero for texts too deep for its package's recursion is LongBench's alone."""
    long = " ".join(f"w{i}" for i in range(1200))
    assert METRICS["rouge_l"](long, [long]) == pytest.approx(1)
    assert METRICS["rouge_l_zh"](long, [long]) == pytest.approx(1)


def test_unknown_metric_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"benchmark\.metric=qaf1.*Did you mean 'qa_f1'") as error:
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
