"""Common words extraction: ten words more frequent than the others in a numbered list (common_words_extraction.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from evals.ruler.generator import Generator, Prompt
from evals.ruler.templates import CWE, CWE_PREFIX
from evals.ruler.words import common_words

COMMON = 10
SHORT = 4096  # below this length, fewer repetitions


def numbered(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


class CommonWords(Generator):
    """`more_words` gives the list that 2025 turns to when 8,169 words are not enough (about 128k tokens)."""

    step = 10

    def __init__(self, more_words: Callable[[], Sequence[str]], **common: Any) -> None:
        super().__init__(**common)
        self.more_words = more_words
        self.words = list(common_words())
        Random(self.seed).shuffle(self.words)
        self.most = len(self.words) if self.ruler_version == 2024 else None

    def make_list(self, units: int, repeats: int, other_repeats: int) -> tuple[str, list[str]]:
        words = self.words if units <= len(self.words) else self.more_words()
        if units > len(words):
            raise ValueError(f"ruler task {self.name} needs {units} different words, there are {len(words)}")
        drawn = self.rng.sample(words, units)
        common, others = drawn[:COMMON], drawn[COMMON:]
        shown = common * repeats + others * other_repeats
        Random(self.seed).shuffle(shown)
        return numbered(shown), common

    def build(self, units: int) -> tuple[str, list[str]]:
        if self.limit < SHORT:
            example, example_answers = self.make_list(20, 3, 1)
            context, answers = self.make_list(units, 6, 1)
        else:
            example, example_answers = self.make_list(40, 10, 3)
            context, answers = self.make_list(units, 30, 3)
        template = CWE + CWE_PREFIX
        space = "" if self.ruler_version == 2024 else " "
        worked = template.format(context=example) + space + numbered(example_answers)
        return worked + "\n" + template.format(context=context), answers

    def probe(self, units: int) -> int:
        text, answers = self.build(units)
        return self.count_tokens(f"{text} {numbered(answers)}" if self.ruler_version == 2024 else text)

    def draw(self, units: int, index: int) -> Prompt:
        text, answers = self.build(units)
        return Prompt(text, tuple(answers), self.count_tokens(text) + self.tokens_to_generate, units)

    def estimate(self) -> int:
        trial = 4096
        return int(self.limit // (self.probe(trial) / trial)) * 2
