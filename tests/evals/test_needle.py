"""benchmark=needle: where the needle lies, how long the sample is, what counts as found."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.needle import Needle
from evals.needle.benchmark import find_facts
from evals.needle.haystack import find_nearest, hide
from evals.needle.wordings import WORDINGS
from evals.ruler.niah import Lines, Needles, Niah
from evals.ruler.split import split
from evals.task import SLACK, Task, Tokenizer, count_tokens
from tests.evals.conftest import Chat, Words

SAID = {"number": "One of the special magic numbers", "outing": "The best thing to do in", "meeting": "will meet the"}
"""What every needle of a wording says, and no other sentence."""


def make(tokenizer: Tokenizer, limit: int | None = None, **settings: Any) -> list[Task]:
    return list(Needle(**{"lengths": [400], **settings}).tasks(tokenizer, limit))


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("needles", [1, 3])
def test_a_sample_holds_its_needles_at_their_depths_and_fills_its_length(
    wording: str, needles: int, words: Words
) -> None:
    lengths = [400, 900]
    tasks = make(words, wordings=wording, lengths=lengths, needles=needles, samples=2)
    assert [task.name for task in tasks] == [f"{wording}_{length}" for length in lengths]
    for task, length in zip(tasks, lengths, strict=True):
        assert [sample.extra["depth"] for sample in task.samples] == [0, 0.25, 0.5, 0.75, 1] * 2
        for sample in task.samples:
            whole = sample.context + sample.question + sample.answer_prefix
            assert length - 60 < count_tokens(words, whole) + sample.max_new_tokens <= length
            assert len(sample.references) == needles * len(WORDINGS[wording].facts)
            _, *hidden = re.split(SAID[wording], sample.context)
            assert len(hidden) == needles
            body = sample.context.split("\n", 1)[1]
            share = count_tokens(words, re.split(SAID[wording], body)[0]) / count_tokens(words, body)
            assert share == pytest.approx(sample.extra["depth"], abs=0.08 + 0.12 * needles)
            assert all(any(fact in text for text in hidden) for fact in sample.references)
            assert all(fact not in sample.question + sample.answer_prefix for fact in sample.references)


def test_several_needles_lie_between_the_depth_and_the_end() -> None:
    sentences = [f"s{i}." for i in range(10)]
    assert hide(sentences, [1] * 10, ["A", "B"], 0.0).split() == ["A", *sentences[:5], "B", *sentences[5:]]
    assert hide(sentences, [1] * 10, ["A", "B"], 0.5).split()[5:10] == ["A", "s5.", "s6.", "B", "s7."]
    assert hide(sentences, [1] * 10, ["A", "B"], 1.0).split()[-2:] == ["A", "B"]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.floats(0, 1))
def test_the_border_is_the_nearest(counts: list[int], depth: float) -> None:
    borders = [sum(counts[:i]) for i in range(len(counts) + 1)]
    at = depth * borders[-1]
    assert abs(borders[find_nearest(borders, at)] - at) == min(abs(b - at) for b in borders)


@pytest.mark.parametrize(("keys", "name"), [(1, "one"), (3, "several")])
def test_the_words_of_number_are_rulers(keys: int, name: str, words: Words) -> None:
    """RULER's own generator, with lines for a haystack: the same texts around it."""
    common = {"limit": 4000, "tokens_to_generate": 9, "count_tokens": lambda text: len(text.split())}
    ruler = Niah(Needles(keys=keys, queries=keys), Lines(), name=name, **common)
    theirs = split(ruler.draw(30, 0).text, "niah")
    (task,) = make(words, 1, needles=keys)
    sample = task.samples[0]

    def without_keys(text: str) -> str:
        return re.sub(r"(?<= for ).*?(?= mentioned| is: )", "KEYS", text)

    assert without_keys(sample.question) == without_keys(theirs[1])
    assert without_keys(sample.answer_prefix) == without_keys(theirs[2])
    assert sample.context.splitlines()[0] == theirs[0].splitlines()[0]
    needle = re.search(r"One of the special .*? is: \d{7}\.", theirs[0])
    assert needle is not None
    assert re.sub(r"\d{7}", "N", without_keys(needle[0])) in re.sub(r"\d{7}", "N", without_keys(sample.context))


def test_samples_are_the_same_for_every_limit_and_of_other_seeds_others(words: Words) -> None:
    whole, few, other = make(words, samples=2), make(words, 3, samples=2), make(words, samples=2, seed=1)
    assert list(few[0].samples) == list(whole[0].samples)[:3]
    assert len(whole[0].samples) == 10
    assert len({sample.references for sample in (*whole[0].samples, *other[0].samples)}) == 20


def test_lengths_up_to_the_models_window() -> None:
    tokenizer = Chat(1500, 30)
    benchmark = Needle(samples=1)
    tasks = list(benchmark.tasks(tokenizer, 1))
    assert [task.name for task in tasks] == ["number_512", "number_1024", "number_1500"]
    held = 1500 - 30 - SLACK
    assert benchmark.facts()["made_for"] == {"1500": held}
    (sample,) = tasks[-1].samples
    assert count_tokens(tokenizer, sample.context + sample.question + sample.answer_prefix) + 32 <= held
    with pytest.raises(ValueError, match="samples of 2000 tokens, the model takes 1500"):
        make(tokenizer, lengths=[500, 2000])


def test_essays_are_the_haystack(tmp_path: Path, words: Words) -> None:
    numbered = " ".join(f"This is line {i} of an essay." for i in range(3000))
    (tmp_path / "PaulGrahamEssays.json").write_text(json.dumps({"text": numbered}))
    punkt = tmp_path / "punkt_tab" / "english"
    punkt.mkdir(parents=True)
    for name in ("abbrev_types.txt", "sent_starters.txt", "collocations.tab", "ortho_context.tab"):
        (punkt / name).write_text("")
    benchmark = Needle([400], sources=str(tmp_path), samples=1)
    (task,) = benchmark.tasks(words)
    starts = set()
    for sample in task.samples:
        lines = [int(n) for n in re.findall(r"line (\d+) of", sample.context)]
        assert all(b == (a + 1) % 3000 for a, b in itertools.pairwise(lines))
        starts.add(lines[0])
    assert len(starts) == 5
    assert benchmark.facts()["haystack"] == "RULER's essays"
    assert str(tmp_path) not in json.dumps(benchmark.facts())
    (punkt.parent / "english").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match="has no punkt_tab/english"):
        Needle(sources=str(tmp_path))


def test_essays_of_ruler(shared: Path, words: Words) -> None:
    (task,) = make(words, 2, sources=str(shared / "data/ruler"))
    text = " ".join(json.loads((shared / "data/ruler/PaulGrahamEssays.json").read_text())["text"].split())
    for sample in task.samples:
        body = sample.context.split("\n", 1)[1]
        needle = re.search(r"One of the special .*?\. ?", body)
        assert needle is not None
        around = re.split(r"(?<=[.?!]) ", body.replace(needle[0], "").strip())
        assert sum(sentence in text for sentence in around) > 0.8 * len(around)


@pytest.mark.parametrize(
    ("prediction", "share"),
    [
        ("You eat FIG\njam by the old  harbor.", 1.0),
        ("fig jam", 0.5),
        ("fig jams and old harbors", 0.0),
        ("figjam, the-old harbor", 0.5),
        ("", 0.0),
    ],
)
def test_facts_are_found_as_whole_words(prediction: str, share: float) -> None:
    assert find_facts(prediction, ["fig jam", "old harbor"]) == share


def test_numbers_and_times_are_whole(words: Words) -> None:
    assert find_facts("It is 1234567.", ["1234567"]) == 1
    assert find_facts("It is 12345678 or 1234 567", ["1234567"]) == 0
    assert find_facts("at 18:15", ["8:15"]) == 0
    (task,) = make(words, 1, wordings=["meeting"])
    (sample,) = task.samples
    assert task.metric(" and ".join(sample.references), sample) == {"facts_found": 1.0}
    assert task.metric(sample.references[0], sample) == {"facts_found": 1 / 3}


@pytest.mark.parametrize("wording", WORDINGS)
def test_keys_differ_within_a_sample(wording: str) -> None:
    for number in range(20):
        needles = WORDINGS[wording].draw(12, random.Random(number))
        assert len({needle.key for needle in needles}) == 12
        assert all(needle.key in needle.text and all(f in needle.text for f in needle.facts) for needle in needles)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"lengths": [0]}, "benchmark.lengths=0: auto, or whole numbers of tokens"),
        ({"lengths": "long"}, "benchmark.lengths=long"),
        ({"lengths": [512, 512]}, "each once"),
        ({"depths": [101]}, "benchmark.depths=101: numbers of 0 to 100"),
        ({"depths": []}, "at least one"),
        ({"wordings": ["numbers"]}, "no wording 'numbers'. Did you mean 'number'? There are: number, outing, meeting"),
        ({"needles": 0}, "benchmark.needles=0 must be at least 1"),
        ({"samples": 0}, "benchmark.samples=0 must be at least 1"),
        ({"sources": "/no/such"}, "benchmark.sources=/no/such is not a folder"),
    ],
)
def test_wrong_settings_are_one_line(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Needle(**wrong)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_lengths_that_hold_nothing_and_models_that_do_not_say(words: Words) -> None:
    with pytest.raises(ValueError, match="100 tokens do not hold 1 needle"):
        make(words, lengths=[100])
    with pytest.raises(ValueError, match="the model does not say how many tokens it takes"):
        make(words, lengths="auto")
