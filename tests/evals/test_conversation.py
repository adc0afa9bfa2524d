"""benchmark=conversation: which turns it makes of RULER's contexts and of files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.conversation import SCBENCH, Conversation
from evals.jobs.prompts import TokenizedSample, cut_batches, hash_prompts
from evals.ruler import Ruler
from evals.task import Sample, Task
from tests.evals.conftest import Words


def make(words: Words, limit: int | None = None, **settings: Any) -> dict[str, list[Sample]]:
    return {task.name: list(task.samples) for task in Conversation(**settings).tasks(words, limit)}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def turn(number: int, answer: Any = None) -> dict[str, Any]:
    return {"input": f"What is {number}?", "answer": answer or f"it is {number}"}


def test_rulers_four_needles_are_asked_for_one_after_the_other(words: Words) -> None:
    """The contexts, keys and values are those of RULER's own task, in the order in which it asks for them."""
    made = make(words, 3, length=700)
    assert list(made) == [f"niah_multiquery_prose_turn_{n}" for n in (1, 2, 3, 4)]
    (task,) = Ruler(700, "niah_multiquery_prose").tasks(words, 3)
    for number, whole in enumerate(task.samples):
        talk = [samples[number] for samples in made.values()]
        assert {sample.context for sample in talk} == {whole.context}
        assert [sample.references for sample in talk] == [(value,) for value in whole.references]
        for sample in talk:
            key = sample.question.removeprefix("What is the special magic number for ").split(" mentioned")[0]
            assert f"One of the special magic numbers for {key} is: {sample.references[0]}." in sample.context
            assert whole.question.index(key)
            assert sample.answer_prefix == f"The special magic number for {key} mentioned in the provided text is"
        assert [(s.conversation, s.turn, s.stays) for s in talk] == [(whole.id, n, None) for n in (1, 2, 3, 4)]
    assert len({sample.id for samples in made.values() for sample in samples}) == 12


def test_limit_and_turns_cut_conversations(words: Words) -> None:
    whole, few = make(words, 5, length=700), make(words, 2, length=700, turns=2)
    assert {name: samples[:2] for name, samples in list(whole.items())[:2]} == few


def test_scbenchs_form(words: Words, tmp_path: Path) -> None:
    """Its own prompts and scores for its files; the plain text and benchmark.metric for others."""
    rows = [{"context": f"{{'{i}': 'x'}}", "multi_turns": [turn(i), turn(i + 1, ["one", "two"])]} for i in (1, 5)]
    path = write(tmp_path / "scbench_kv.jsonl", *rows)
    first, second = Conversation(data=path).tasks(words)
    assert [sample.id for sample in first.samples] == ["scbench_kv-1-1", "scbench_kv-2-1"]
    sample = second.samples[0]
    assert (
        sample.context
        == "Extract the value corresponding to the specified key in the JSON object below.\n\n{'1': 'x'}\n\n"
    )
    assert (sample.question, sample.references, sample.max_new_tokens) == ("What is 2?", ("one", "two"), 150)
    assert second.metric("It is TWO", sample) == {"string_match_any": 1.0}
    assert set(SCBENCH) == {f"scbench_{name}" for name in ("kv", "prefix_suffix", "vt", "many_shot", "qa_eng")}
    mine = make(words, data=write(tmp_path / "mine.jsonl", *rows), max_new_tokens=7, history="expected")
    (sample, *_) = mine["mine_turn_2"]
    assert (sample.context, sample.max_new_tokens, sample.stays) == ("{'1': 'x'}\n\n", 7, " one, two")


def test_longbenchs_rows_of_one_context(words: Words, tmp_path: Path) -> None:
    """Those alone with their context are left out, and said to be."""
    rows = [{"context": c, "input": f"{c}{i}?", "answers": [f"{i}"]} for i, c in enumerate("abacbb")]
    benchmark = Conversation(data=write(tmp_path / "qasper.jsonl", *rows), metric="qa_f1")
    tasks = {task.name: [sample.question for sample in task.samples] for task in benchmark.tasks(words)}
    assert tasks == {
        "qasper_turn_1": ["a0?", "b1?"],
        "qasper_turn_2": ["a2?", "b4?"],
        "qasper_turn_3": ["b5?"],
    }
    assert benchmark.facts()["left_out"] == {"qasper": "1 contexts with a single question"}
    assert str(tmp_path) not in json.dumps(benchmark.facts())


def test_longbenchs_own_file(words: Words, shared: Path) -> None:
    rows = [json.loads(line) for line in (shared / "data/longbench/qasper.jsonl").open(encoding="utf-8")]
    twice = {row["context"] for row in rows if sum(row["context"] == other["context"] for other in rows) > 1}
    made = make(words, data=str(shared / "data/longbench/qasper.jsonl"), metric="qa_f1")
    assert len(made.get("qasper_turn_1", ())) == len(twice)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"context": "c", "multi_turns": []}, "line 1: 'multi_turns' must be a list of objects"),
        ({"context": "c", "multi_turns": [{"input": "x"}]}, "line 1 has no 'answers'; it has: input"),
        ({"context": "c", "multi_turns": [{"answer": "x"}]}, "line 1 has no 'input'"),
        ({"context": "c", "multi_turns": [{"input": 3, "answer": "x"}]}, "'input' is an integer, expected a string"),
        ({"context": "c", "multi_turns": [turn(1, " ")]}, "line 1: 'answer' holds an empty answer"),
        ({"input": "x"}, "line 1 has no 'context'"),
    ],
)
def test_wrong_rows_are_one_line(words: Words, tmp_path: Path, row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=r"t\.jsonl line 1") as error:
        make(words, data=write(tmp_path / "t.jsonl", row))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"history": "owm"}, "benchmark.history=owm: no such history. Did you mean 'own'? There are: own, expected"),
        ({"metric": "f1"}, "benchmark.metric=f1: no such metric."),
        ({"tasks": "vt"}, "benchmark.tasks=vt: no such task. There are: niah_multiquery, niah_multiquery_noise"),
        ({"turns": 1}, "benchmark.turns=1 must be at least 2"),
        ({"samples": 0}, "benchmark.samples=0 must be at least 1"),
    ],
)
def test_wrong_settings_are_one_line(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match="benchmark") as error:
        Conversation(**wrong)
    assert str(error.value).startswith(says)


def test_files_that_are_not_there_or_not_ours_to_score(words: Words, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"has no \.jsonl file"):
        make(words, data=str(tmp_path))
    with pytest.raises(FileNotFoundError, match="is missing"):
        make(words, data=str(tmp_path / "gone.jsonl"))
    with pytest.raises(ValueError, match="SCBench scores it by a program that is not here"):
        make(words, data=write(tmp_path / "scbench_repoqa.jsonl", {"context": "c", "multi_turns": [turn(1)]}))


def tokenized(conversation: str, number: int, task: Task, context: int = 1) -> TokenizedSample:
    sample = Sample(f"{conversation}{number}{context}", task.name, "c", "q", ("a",), 5)
    if conversation:
        sample = replace(sample, conversation=conversation, turn=number)
    return TokenizedSample(sample, task, (context,), (number,))


def test_a_conversation_stays_together_in_its_order() -> None:
    """Two of one context are two; one of another number of turns is in a batch of its own; others are as they were."""
    tasks = [Task(f"t{n}", 1, "", (), lambda *_: {}) for n in range(3)]
    talks = [tokenized(name, n, tasks[n - 1]) for n in (2, 1) for name in "abc" if (name, n) != ("c", 2)]
    alone = [tokenized("", n, tasks[0], n) for n in (7, 8)]
    batches = cut_batches([*talks, *alone], 8)
    assert [[[s.sample.id for s in context] for context in batch] for batch in batches] == [
        [["a11", "a21"], ["b11", "b21"]],
        [["c11"]],
        [["77"], ["88"]],
    ]


def test_the_place_in_a_conversation_is_in_the_prompts_hash() -> None:
    task = Task("t", 1, "", (), lambda *_: {})
    plain, first, second = tokenized("", 1, task), tokenized("a", 1, task), tokenized("a", 2, task)
    fixed = replace(first, sample=replace(first.sample, stays="x"))
    moved = replace(second, question=first.question)
    assert len({hash_prompts([s])["t v1"] for s in (plain, first, fixed, moved)}) == 4
