"""Shares of several sources: any number of first contexts has them as nearly as whole contexts can."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.mixture import Mixture, complete_shares, take_turns
from evals.task import Sample, Task, Tokenizer
from tests.evals.conftest import Words


class Source:
    """`tasks` tasks of `contexts` contexts, each with `questions` questions. `limit` counts the questions."""

    def __init__(self, name: str, tasks: int = 1, contexts: int = 100, questions: int = 1) -> None:
        self.name, self.count, self.contexts, self.questions = name, tasks, contexts, questions

    def tasks(self, tokenizer: Tokenizer, limit: int | None) -> Iterator[Task]:
        for number in range(self.count):
            name = f"{self.name}{number}"
            samples = [
                Sample(f"{name}-{i}-{q}", name, f"{name} {i}", f"{q}?", ("x",), 5)
                for i in range(self.contexts)
                for q in range(self.questions)
            ]
            yield Task(name, 1, name, samples[:limit], lambda prediction, sample: {"score": 0.0})

    def facts(self) -> Mapping[str, Any]:
        return {"benchmark": self.name}


def mix(limit: int | None, **parts: tuple[Source, float | None]) -> list[Sample]:
    mixture = Mixture({name: {"benchmark": source, "share": share} for name, (source, share) in parts.items()})
    (task,) = mixture.tasks(Words(), limit)
    return list(task.samples)


def test_parts_and_their_tasks_take_turns() -> None:
    samples = mix(8, a=(Source("a", tasks=2), None), b=(Source("b"), 0.25))
    said = ["a0 0", "a1 0", "b0 0", "a0 1", "a1 1", "a0 2", "b0 1", "a1 2"]
    assert [sample.context for sample in samples] == said
    assert mix(5, a=(Source("a", tasks=2), None), b=(Source("b"), 0.25)) == samples[:5]


def test_a_context_counts_once_with_all_its_questions() -> None:
    samples = mix(4, a=(Source("a", questions=3), 0.5), b=(Source("b"), 0.5))
    assert [s.context for s in samples] == ["a0 0"] * 3 + ["b0 0"] + ["a0 1"] * 3 + ["b0 1"]
    assert len({sample.id for sample in samples}) == 8


def test_what_a_table_says_of_its_parts() -> None:
    parts = {"a": {"benchmark": Source("x"), "share": 0.9}, "b": {"benchmark": Source("y"), "share": None}}
    mixture = Mixture(parts)
    list(mixture.tasks(Words(), 20))
    assert mixture.facts()["parts"]["a"] == {"share": 0.9, "contexts": 18, "benchmark": "x"}
    assert mixture.facts()["parts"]["b"]["contexts"] == 2


@given(st.lists(st.integers(1, 50), min_size=1, max_size=5), st.integers(0, 60))
def test_every_prefix_has_the_shares(weights: list[int], count: int) -> None:
    shares = {str(i): weight / sum(weights) for i, weight in enumerate(weights)}
    turns = list(take_turns(shares, count))
    for end in range(count + 1):
        for name, share in shares.items():
            assert turns[:end].count(name) < share * end + 1 + 1e-9
    assert turns == list(take_turns(shares, 100))[:count]


def test_shares() -> None:
    assert complete_shares({"a": 1, "b": 0}) == {"a": 1}
    assert complete_shares({"a": 0.1, "b": 0.2, "c": 0.7}) == {"a": 0.1, "b": 0.2, "c": 0.7}
    assert complete_shares({"a": None, "b": 1.0}) == {"b": 1.0}


@pytest.mark.parametrize(
    "shares",
    [{"a": 0.5}, {"a": 0.5, "b": 0.6}, {"a": None, "b": None}, {"a": None, "b": 1.2}, {"a": -0.5, "b": 1.5}, {}],
)
def test_wrong_shares_are_one_line(shares: dict[str, float | None]) -> None:
    with pytest.raises(ValueError, match="together they must be 1") as error:
        Mixture({name: {"benchmark": Source(name), "share": share} for name, share in shares.items()})
    assert "\n" not in str(error.value)


def test_too_few_contexts_and_wrong_parts() -> None:
    with pytest.raises(ValueError, match=r"parts.a has 3 contexts, and its share asks for 5: lower"):
        mix(10, a=(Source("a", contexts=3), 0.5), b=(Source("b"), 0.5))
    with pytest.raises(ValueError, match=r"calibration.contexts=null"):
        mix(None, a=(Source("a"), 1))
    with pytest.raises(ValueError, match=r"parts.a must have `benchmark` and `share`; it has share"):
        Mixture({"a": {"share": 1}})
