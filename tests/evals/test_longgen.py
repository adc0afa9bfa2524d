"""longgen: lists whose answers follow from the prompt, and scores that count what is right in order."""

from __future__ import annotations

import doctest
import itertools
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.longgen import LongGen, benchmark, score, tasks
from evals.longgen.score import count_common, score_items
from evals.longgen.tasks import TASKS
from evals.longgen.words import WORDS
from evals.task import Sample


class Letters:
    """A tokenizer of letters."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [*text.encode()]

    def decode(self, token_ids: list[int], **_: Any) -> str:
        return bytes(token_ids).decode()


def samples(task: str, **settings: Any) -> list[Sample]:
    (made,) = LongGen(tasks=task, **settings).tasks(Letters(), 5)
    return [*made.samples]


def solve(task: str, sample: Sample) -> list[str]:
    """The answer, worked out from the text that a model gets."""
    if task in ("copy", "reverse"):
        lines = re.findall(r"^(\d+)\. (\w+)$", sample.context, re.M)
        words = [word for _, word in sorted(lines, key=lambda line: int(line[0]), reverse=task == "reverse")]
        begin = 1 if task == "copy" else len(words)
        assert sample.answer_prefix == f"{begin}."
        return words
    if task == "tally":
        words = re.findall(r"^List: (.*)$", sample.context, re.M)[-1].split(", ")
        return [f"{word} {words[: i + 1].count(word)}" for i, word in enumerate(words)]
    if task == "chain":
        (value,) = re.findall(r"assigned the value (\d+) in", sample.question)
        set_by = dict(re.findall(r"VAR (\w+) = (?:VAR )?(\w+)", sample.context))
        found = [value]
        while following := [name for name, other in set_by.items() if other == found[-1]]:
            found += following
        return found[1:]
    keys = re.findall(r"[a-z]+-[a-z]+", sample.question)
    return [re.findall(rf"for {key} is: (\S+)\.", sample.context)[0] for key in keys]


@pytest.mark.parametrize("size", [1, 4, 24])
@pytest.mark.parametrize("task", TASKS)
def test_the_text_says_the_answer(task: str, size: int) -> None:
    for sample in samples(task, items=size):
        assert list(sample.references) == solve(task, sample)
        assert len(sample.references) == size


@pytest.mark.parametrize("task", TASKS)
def test_a_right_answer_as_a_model_writes_it_has_all_points(task: str) -> None:
    for sample in samples(task, items=12):
        ways = [(", ", "."), (" , ", "\n\n")] + [(",\t", ""), ("\n2. ", "\n")] * (task != "tally")
        for joint, end in ways:
            written = " " + joint.join(sample.references) + end
            assert benchmark.score(written, sample) == {"in_order": 1, "prefix": 1, "exact": 1}
        assert benchmark.score("", sample)["in_order"] == 0
        if task in ("copy", "reverse", "tally"):
            assert benchmark.score(", ".join(sample.references).title(), sample)["exact"] == 1
    named = samples("numbers", items=2)[0]
    first, second = named.references
    assert benchmark.score(f" massive-: {first}, other-: {second}.", named)["exact"] == 1


@pytest.mark.parametrize("task", TASKS)
def test_there_is_room_for_the_answer(task: str) -> None:
    for sample in samples(task, items=24):
        assert sample.max_new_tokens > len(", ".join(sample.references))
        assert sample.max_new_tokens % 32 == 0


def test_samples_are_drawn_from_seed_and_number_alone() -> None:
    few, many = ([*LongGen(items=6).tasks(Letters(), limit)] for limit in (2, 4))
    assert [s.context for t in few for s in t.samples] == [s.context for t in many for s in t.samples[:2]]
    contexts = {
        s.context for seed in (0, 1) for t in LongGen(items=6, seed=seed).tasks(Letters(), 4) for s in t.samples
    }
    assert len(contexts) == 2 * 4 * len(TASKS)
    assert len(set(WORDS)) == len(WORDS)


def test_what_a_lazy_answer_gets() -> None:
    """Repeating the list as it stands is no way to reverse it, and counting nothing none to tally."""
    (backwards,) = samples("reverse", items=24)[:1]
    assert benchmark.score(", ".join(backwards.references[::-1]), backwards)["in_order"] == pytest.approx(1 / 24)
    for tallied in samples("tally", items=24):
        ones = ", ".join(f"{item.split()[0]} 1" for item in tallied.references)
        assert benchmark.score(ones, tallied)["in_order"] <= tasks.KINDS / 24


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), min_size=1, max_size=7))
def test_scores_are_those_of_brute_force(found: list[str], wanted: list[str]) -> None:
    def subsequences(items: list[str]) -> set[tuple[str, ...]]:
        return {kept for size in range(len(items) + 1) for kept in itertools.combinations(items, size)}

    common = max(map(len, subsequences(found) & subsequences(wanted)))
    assert count_common(found, wanted) == common
    told = score_items(found, wanted)
    assert told["in_order"] == common / max(len(found), len(wanted))
    assert told["exact"] == (found == wanted)
    assert told["prefix"] * len(wanted) <= common


@pytest.mark.parametrize("module", [score, tasks])
def test_examples_in_docstrings(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"items": 0}, "benchmark.items=0: lists have 1 to "),
        ({"items": 1000}, "benchmark.items=1000: lists have 1 to "),
        ({"samples": 0}, "benchmark.samples=0 must be at least 1"),
        ({"tasks": ["copi"]}, "benchmark.tasks: no longgen task 'copi'. Did you mean 'copy'"),
    ],
    ids=str,
)
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        LongGen(**settings)
