"""A needle in a haystack, asked for at every length and depth of a grid."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

from evals.needle.haystack import Haystack, fill, hide, read_essays, write_prose
from evals.needle.wordings import WORDINGS
from evals.ruler.sources import ESSAYS, PUNKT, WHERE, Sources
from evals.ruler.words import WONDERWORDS
from evals.task import SLACK, Sample, Task, Tokenizer, count_tokens, template_tokens, window
from lukv.names import suggest_nearest

VERSION = 1
SHORTEST = 512
"""Tokens of a sample of the first length of benchmark.lengths=auto; each further one is twice as long."""


class Needle:
    """Samples are the same for the same settings and tokenizer, whatever `limit` is. Each has needles of its own.

    A task is a wording at a length. Its samples go through the depths in turn, so that `limit` cuts all depths alike.

    lengths         tokens of a sample, those to generate included; "auto": 512, 1024 ... up to the model's window.
                    Where that does not hold as many beside its chat template, samples are made for what it does hold
                    (`facts`: "made_for")
    depths          where the first needle lies, in per cent of the haystack's tokens
    needles         how many are hidden and asked for at once; the others lie between the first and the end
    wordings        names of evals.needle.wordings.WORDINGS
    samples         of each wording, length and depth, at most
    sources         folder with RULER's PaulGrahamEssays.json and punkt_tab/, the haystack; None: our own prose
    max_new_tokens  of an answer, for each needle
    question_aware  the question is part of what is compressed
    """

    name = "needle"

    def __init__(
        self,
        lengths: str | int | Sequence[int] = "auto",
        depths: float | Sequence[float] = (0, 25, 50, 75, 100),
        needles: int = 1,
        wordings: str | Sequence[str] = "number",
        samples: int = 4,
        sources: str | None = None,
        max_new_tokens: int = 32,
        question_aware: bool = False,
        seed: int = 0,
    ) -> None:
        self.lengths = None if lengths == "auto" else check_numbers("lengths", as_list(lengths), 1, None)
        self.depths = check_numbers("depths", as_list(depths), 0, 100)
        self.wordings = as_list(wordings)
        for name in self.wordings:
            if name not in WORDINGS:
                near = suggest_nearest(str(name), WORDINGS)
                raise ValueError(f"benchmark.wordings: no wording {name!r}.{near} There are: {', '.join(WORDINGS)}")
        counts = {"needles": needles, "samples": samples, "max_new_tokens": max_new_tokens}
        for key, count in counts.items():
            if count < 1:
                raise ValueError(f"benchmark.{key}={count} must be at least 1")
        self.needles, self.samples, self.max_new_tokens = needles, samples, max_new_tokens * needles
        self.question_aware, self.seed = question_aware, seed
        self.sources = Sources(sources)
        if sources is not None and (missing := self.sources.missing((ESSAYS, PUNKT))):
            raise FileNotFoundError(f"{self.sources.folder} has no {missing[0]}: {WHERE[missing[0]]}")
        self.made: list[int] = []
        self.made_for: dict[str, int] = {}

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        self.made = self.choose_lengths(window(tokenizer))
        self.made_for = {}
        count = self.samples * len(self.depths)
        for name in self.wordings:
            for length in self.made:
                numbers = range(count if limit is None else min(limit, count))
                description = f"{self.needles} needle{'s' * (self.needles > 1)} ({name}) in {length} tokens"
                samples = [self.sample(name, length, number, tokenizer) for number in numbers]
                yield Task(f"{name}_{length}", VERSION, description, samples, score)

    def choose_lengths(self, longest: int | None) -> list[int]:
        """Raises ValueError for lengths that the model does not take."""
        if self.lengths is None:
            if longest is None:
                raise ValueError(
                    "benchmark.lengths=auto: the model does not say how many tokens it takes; name lengths"
                )
            doubled = [SHORTEST * 2**i for i in range(longest.bit_length()) if SHORTEST * 2**i < longest]
            return [*doubled, longest]
        if longest is not None and max(self.lengths) > longest:
            raise ValueError(
                f"benchmark.lengths: samples of {max(self.lengths)} tokens, the model takes {longest}: leave those out"
            )
        return self.lengths

    def limit(self, length: int, tokenizer: Tokenizer) -> int:
        """Tokens of a sample of this length: as many, or what the window holds beside the chat template."""
        longest = window(tokenizer)
        limit = length if longest is None else min(length, longest - template_tokens(tokenizer) - SLACK)
        if limit < length:
            self.made_for[str(length)] = limit
        return limit

    def haystack(self) -> Haystack:
        return write_prose if self.sources.folder is None else read_essays(self.sources.essays)

    def sample(self, name: str, length: int, number: int, tokenizer: Tokenizer) -> Sample:
        """Raises ValueError for a length that does not hold the needles and a sentence beside them."""
        rng = Random(f"{self.seed}/{name}/{length}/{number}")
        limit, depth = self.limit(length, tokenizer), self.depths[number % len(self.depths)]
        hidden = WORDINGS[name].draw(self.needles, rng)
        said = WORDINGS[name].phrases(hidden)
        asked = said.question + said.answer_prefix
        room = limit - self.max_new_tokens - count_tokens(tokenizer, said.before + "\n" + asked)
        sentences = self.haystack()(limit, rng)
        counts = [count_tokens(tokenizer, f" {sentence}") for sentence in sentences]
        needles = [needle.text for needle in hidden]
        left = fill(counts, room - sum(count_tokens(tokenizer, f" {needle}") for needle in needles))
        while left:  # tokens of the whole may be more than those of its parts
            haystack = hide(sentences[:left], counts[:left], needles, depth / 100)
            context = f"{said.before}{haystack}\n"
            if count_tokens(tokenizer, context + asked) + self.max_new_tokens <= limit:
                break
            left -= 1
        else:
            raise ValueError(
                f"benchmark.lengths: {length} tokens do not hold {self.needles} needle{'s' * (self.needles > 1)} "
                f"({name}), a sentence and {self.max_new_tokens} tokens of an answer: choose longer ones"
            )
        return Sample(
            id=f"{name}_{length}-{number}",
            task=f"{name}_{length}",
            context=context + said.question if self.question_aware else context,
            question="" if self.question_aware else said.question,
            answer_prefix=said.answer_prefix,
            references=tuple(fact for needle in hidden for fact in needle.facts),
            max_new_tokens=self.max_new_tokens,
            extra={"length": length, "depth": depth / 100},
        )

    def facts(self) -> Mapping[str, Any]:
        return {
            "benchmark": "needle",
            "lengths": self.made,
            "made_for": self.made_for,
            "depths": self.depths,
            "needles": self.needles,
            "wordings": self.wordings,
            "question_aware": self.question_aware,
            "seed": self.seed,
            "haystack": "prose of our own grammar" if self.sources.folder is None else "RULER's essays",
            "sources": self.sources.fingerprints(),
            "wonderwords": WONDERWORDS,
        }


def score(prediction: str, sample: Sample) -> dict[str, float]:
    return {"facts_found": find_facts(prediction, sample.references)}


def find_facts(prediction: str, facts: Sequence[str]) -> float:
    """The share of the facts that stand in the prediction as whole words: case and the kind of blanks do not matter,
    and a number within a longer one is not found.

    >>> find_facts("Eat FIG\\njam, 12345!", ["fig jam", "1234"])
    0.5
    """
    text = " ".join(prediction.split()).casefold()
    found = (re.search(rf"(?<!\w){re.escape(fact.casefold())}(?!\w)", text) for fact in facts)
    return sum(match is not None for match in found) / len(facts)


def as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_numbers(name: str, values: list[Any], least: float, most: float | None) -> list[Any]:
    """The numbers in ascending order. Raises ValueError for anything else, and for the same one twice."""
    for value in values:
        if type(value) not in (int, float) or value < least or (most is not None and value > most):
            allowed = f"numbers of {least} to {most}" if most is not None else "auto, or whole numbers of tokens"
            raise ValueError(f"benchmark.{name}={value}: {allowed}")
    if not values or len(set(values)) < len(values):
        raise ValueError(f"benchmark.{name}={values}: at least one, and each once")
    return sorted(values)
