"""Text that goes on: samples are pieces of the text, cut where the tokenizer says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evals.continuation import SEEDS, Continuation, take_tokens
from evals.task import Sample, Tokenizer, count_tokens
from tests.evals.conftest import Words

NUMBERED = "\n".join(f"In line {i} somebody wrote the number {i * 7919 % 10007}." for i in range(6000))
"""Every line is there once, so a piece says where it is from."""


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(NUMBERED, encoding="utf-8")
    return path


def make(text: Path, tokenizer: Tokenizer, limit: int | None = None, **settings: int) -> list[Sample]:
    benchmark = Continuation(tasks="prose", prose=str(text), **{"length": 90, "max_new_tokens": 20, **settings})
    (task,) = benchmark.tasks(tokenizer, limit)
    return list(task.samples)


def test_a_sample_is_a_piece_of_the_text(text: Path, words: Words) -> None:
    samples = make(text, words)
    for sample in samples:
        (answer,) = sample.references
        assert f"{sample.context}{sample.question} {answer}" in NUMBERED
        assert 80 < count_tokens(words, sample.context) <= 90
        assert 1 <= count_tokens(words, sample.question) <= 8
        assert 10 < count_tokens(words, answer) <= 20
        assert (sample.chat, sample.layout, sample.question[0]) == (False, "whole", " ")
    assert len({sample.id for sample in samples}) == len(samples) > 50


def test_no_lead_is_no_question(text: Path, words: Words) -> None:
    for sample in make(text, words, 3, lead=0):
        assert sample.question == ""
        assert f"{sample.context} {sample.references[0]}" in NUMBERED


def test_seeds_have_nothing_in_common_whatever_the_length(text: Path, words: Words) -> None:
    lines: dict[int, set[str]] = {}
    for seed in range(SEEDS):
        for length in (40, 90, 200):
            for sample in make(text, words, seed=seed, length=length):
                whole = f"{sample.context}{sample.question} {sample.references[0]}"
                lines.setdefault(seed, set()).update(whole.split("\n")[1:-1])
    seen = [line for found in lines.values() for line in found]
    assert len(seen) == len(set(seen)) > 1000


def test_samples_are_the_same_for_every_limit(text: Path, words: Words) -> None:
    everything = make(text, words)
    assert make(text, words) == everything
    assert make(text, words, 5) == everything[:5]
    assert make(text, words, seed=1) != everything
    starts = [int(sample.id.split("-")[1]) for sample in everything]
    assert starts != sorted(starts)


def test_python_itself_has_code_and_prose(words: Words) -> None:
    benchmark = Continuation()
    code, prose = benchmark.tasks(words, 2)
    assert (code.name, prose.name) == ("code", "prose")
    assert [len(code.samples), len(prose.samples)] == [2, 2]
    assert set(benchmark.facts()["texts"]["code"]) == {"sha256", "python"}


def test_texts_of_ones_own(tmp_path: Path, words: Words) -> None:
    """A folder's files by name, RULER's essays, and facts that know no path."""
    (tmp_path / "b.txt").write_text("later " * 600)
    (tmp_path / "a.md").write_text("first " * 600)
    (tmp_path / "c.py").write_text("code")
    benchmark = Continuation(length=30, max_new_tokens=5, tasks=["prose"], prose=str(tmp_path))
    (task,) = benchmark.tasks(words)
    assert {word for sample in task.samples for word in sample.context.split()} == {"first"}  # the first quarter
    assert str(tmp_path) not in json.dumps(benchmark.facts())
    essays = tmp_path / "PaulGrahamEssays.json"
    essays.write_text(json.dumps({"text": NUMBERED}))
    assert [s.context for s in make(essays, words, 2)] == [
        s.context for s in make(write(tmp_path / "same.txt", NUMBERED), words, 2)
    ]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_the_score_is_the_likeness_to_the_text(text: Path, words: Words) -> None:
    (task,) = Continuation(tasks="prose", prose=str(text), length=90).tasks(words, 1)
    (sample,) = task.samples
    assert task.metric(f" {sample.references[0]}\n", sample) == {"edit_similarity": 1.0}
    assert task.metric("", sample) == {"edit_similarity": 0.0}
    assert 0 < task.metric(sample.references[0][:40], sample)["edit_similarity"] < 1


def test_text_without_blanks(words: Words) -> None:
    assert take_tokens("".join("一二三"), 2, SingleLetters()) == "一二"
    assert take_tokens("one two three", 2, words) == "one two"
    assert take_tokens("one two three", 9, words) == "one two three"


class SingleLetters(Words):
    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(range(len(text)))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"seed": 4}, "benchmark.seed=4: choose one of 0 to 3"),
        ({"length": 0}, "must be at least 1"),
        ({"lead": -1}, "at least 0"),
        ({"tasks": ["cod"]}, "no task 'cod'. Did you mean 'code'? There are: code, prose"),
        ({"code": "/no/such"}, "benchmark.code=/no/such is missing"),
    ],
)
def test_wrong_settings_are_one_line(wrong: dict, says: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Continuation(**wrong)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_wrong_texts_are_one_line(tmp_path: Path, words: Words) -> None:
    short, latin, empty = tmp_path / "short.txt", tmp_path / "latin.txt", tmp_path / "empty"
    short.write_text("a few words")
    latin.write_bytes("é".encode("latin-1"))
    empty.mkdir()
    for path, says in ((short, "letters of its text are too few"), (latin, "is not UTF-8"), (empty, "has no file of")):
        with pytest.raises((ValueError, FileNotFoundError), match=says) as error:
            make(path, words)
        assert "\n" not in str(error.value)
