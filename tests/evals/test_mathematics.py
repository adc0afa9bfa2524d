"""Sets of mathematical problems: their files, the answer in a solution, and what counts as right."""

from __future__ import annotations

import doctest
import json
import re
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from evals.mathematics import Mathematics, benchmark, equal, extract
from evals.mathematics.equal import same_answer
from evals.mathematics.extract import find_answer, find_boxed
from evals.task import Sample

# The layouts of the public files, with problems of our own.
GSM8K = {
    "question": "Ann has 3 bags of 4 apples and eats 2. How many are left?",
    "answer": "She has 3 * 4 = <<3*4=12>>12 apples.\nShe keeps 12 - 2 = <<12-2=10>>10.\n#### 10",
}
MATH500 = {
    "problem": "What is half of $\\frac{3}{2}$?",
    "solution": "It is $\\boxed{\\frac{3}{4}}$.",
    "answer": "\\frac{3}{4}",
    "subject": "Prealgebra",
    "level": 1,
    "unique_id": "test/prealgebra/1.json",
}
AIME25 = {"problem": "Find the remainder of $2^{10}$ divided by 1000.", "answer": "24", "id": "0"}


def samples(name: str, data: Path, **settings: Any) -> list[Sample]:
    (task,) = Mathematics(name, str(data), **settings).tasks(None)  # type: ignore[arg-type]
    return [*task.samples]


def write_jsonl(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "row", "gold"), [("gsm8k", GSM8K, "10"), ("math500", MATH500, "\\frac{3}{4}"), ("aime25", AIME25, "24")]
)
def test_rows_of_each_set(name: str, row: dict[str, Any], gold: str, tmp_path: Path) -> None:
    """As jsonl and parquet, a file or in a folder; the whole problem is the context."""
    folders = [tmp_path / kind for kind in ("jsonl", "parquet")]
    file = write_jsonl(folders[0] / "test.jsonl", row)
    folders[1].mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), folders[1] / "test-00000-of-00001.parquet")
    for place in (file, *folders):
        (sample,) = samples(name, place, max_new_tokens=99)
        assert sample.context == row.get("problem", row.get("question"))
        assert "\\boxed{}" in sample.question
        assert (sample.references, sample.max_new_tokens) == ((gold,), 99)
    (aware,) = samples(name, file, question_aware=True)
    assert (aware.context, aware.question) == (sample.context + sample.question, "")


def test_the_hubs_folder_of_gsm8k_has_more_than_the_test(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "main/train.jsonl", {"question": "train?", "answer": "#### 1"})
    write_jsonl(tmp_path / "main/test.jsonl", GSM8K)
    write_jsonl(tmp_path / "socratic/test.jsonl", {"question": "socratic?", "answer": "#### 1"})
    assert [s.context for s in samples("gsm8k", tmp_path)] == [GSM8K["question"]]
    both = tmp_path / "aime"
    for part, row in (("I", AIME25), ("II", {"question": "Two?", "answer": 2})):
        write_jsonl(both / f"aime2025-{part}.jsonl", row)
    assert [(s.id, s.references) for s in samples("aime25", both)] == [("aime25-1", ("24",)), ("aime25-2", ("2",))]


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        # openai/grade-school-math, dataset.py: the number after ####, commas left out, sign kept
        ("He pays 1,000 + 250.\n#### 1,250", "1,250"),
        ("#### -3", "-3"),
        # Hendrycks et al.: the last \boxed or \fbox, braces inside it counted
        (r"so $\boxed{\frac{14}{3}}$.", r"\frac{14}{3}"),
        (r"first \boxed{1}, then \fbox{\left( 3, \frac{\pi}{2} \right)}.", r"\left( 3, \frac{\pi}{2} \right)"),
        (r"\boxed 204.", "204"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        # what chat models say
        ("Therefore, the answer is $18. She has 2 left.", "$18"),
        ("**Answer:** 42", "42"),
        ("The final answer is: 7.5 metres", "7.5"),
        ("It costs 3 dollars, which makes 12 dollars.", "12"),
        (r"I begin \boxed{ and then 5", "5"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_the_answer_of_a_solution(solution: str, answer: str | None) -> None:
    assert find_answer(solution) == answer


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("18", "18.00", True),
        ("$1,250", "1250", True),
        ("1,250.5", "1250.50", True),
        ("-3", "3", False),
        ("24", "024", True),
        # the steps of math_equivalence.py
        (r"\dfrac{1}{2}", r"\frac12", True),
        (r"\tfrac 34", r"\frac{3}{4}", True),
        (r"\frac1{72}", r"\frac{1}{72}", True),
        ("1/2", r"\frac{1}{2}", True),
        ("0.5", r"\frac{1}{2}", True),
        (r"\sqrt3", r"\sqrt{3}", True),
        (r"\left(3, \frac{\pi}{2}\right)", r"(3,\frac{\pi}{2})", True),
        (r"90^\circ", "90", True),
        (r"10\%", "10", True),
        (r"12\text{ cm}", "12", True),
        (r"x = 5", "5", True),
        (r"\text{east}", "east", True),
        (r"\frac{-3}{4}", r"-\frac{3}{4}", True),
        (r"2\sqrt{3}", r"3\sqrt{2}", False),
        ("(1,2)", "(2,1)", False),
        (r"\frac{1}{3}", "0.33", False),
        ("x+1", "1+x", False),
        ("", "0", False),
    ],
)
def test_what_is_the_same_answer(one: str, other: str, same: bool) -> None:
    assert same_answer(one, other) is same
    assert same_answer(other, one) is same


def test_scores() -> None:
    sample = Sample("x", "gsm8k", "", "", ("1,250",), 9)
    score = benchmark.score
    assert score(r"So it is \boxed{1250}.", sample) == {"correct": 1, "boxed": 0, "answered": 1}
    assert score(r"\boxed{1,250}", sample) == {"correct": 1, "boxed": 1, "answered": 1}
    assert score("1250 it is", sample) == {"correct": 1, "boxed": 0, "answered": 1}
    assert score("Nobody knows.", sample) == {"correct": 0, "boxed": 0, "answered": 0}
    assert find_boxed("1250") is None


@pytest.mark.parametrize("module", [extract, equal])
def test_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"answer": "1"}, "line 1 has no 'problem' or 'question' with a text"),
        ({"problem": " ", "answer": "1"}, "line 1 has no 'problem' or 'question' with a text"),
        ({"problem": "x"}, "line 1: 'answer' must be a text or a whole number"),
        ({"problem": "x", "answer": 1.5}, "line 1: 'answer' must be a text or a whole number"),
        ({"problem": "x", "answer": "so\n####  "}, "line 1: 'answer' holds no answer"),
    ],
    ids=str,
)
def test_bad_rows(row: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        samples("aime25", write_jsonl(tmp_path / "a.jsonl", row))


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="There are: gsm8k, math500, aime25"):
        Mathematics("gsm8", "x")
    with pytest.raises(ValueError, match=r"benchmark\.max_new_tokens=0"):
        Mathematics("gsm8k", "x", max_new_tokens=0)
    for data, said in ((tmp_path, "has no file of GSM8K"), (tmp_path / "x", "a file or folder of GSM8K is expected")):
        with pytest.raises(FileNotFoundError, match=said):
            samples("gsm8k", data)


def test_each_set_from_the_command_line(command: Any, model: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "test.jsonl", GSM8K, {"question": "1 + 1?", "answer": "#### 2"})
    asked = ["model=hf", f"model.path={model}", f"runs={tmp_path}", "benchmark=gsm8k", "benchmark.max_new_tokens=20"]
    evicting = ["method=keydiff", "budget=1", "decoding=size", "decoding.tokens=30", "decoding.every=8"]
    assert command(*asked, f"benchmark.data={data}", *evicting) == 0
    (path,) = tmp_path.glob("*keydiff__b1__size30-every8__gsm8k__*/samples.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["id"] for line in lines} == {"gsm8k-1", "gsm8k-2"}
    assert all(line["while_answering"]["tokens"] for line in lines)
