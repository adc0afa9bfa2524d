"""Frequent words extraction: the three most frequent coded words, by Zipf's law (freq_words_extraction.py)."""

from __future__ import annotations

import string
from collections.abc import Iterator
from random import Random
from typing import Any

import numpy as np

from evals.ruler.generator import Generator, Prompt
from evals.ruler.templates import FWE, FWE_PREFIX

ALPHA = 2.0
ZETA = 1.6449340668482264  # zeta(2), pi ** 2 / 6
LETTERS = 6
ASKED = 3


class FrequentWords(Generator):
    """Sized in its own way: RULER searches on one vocabulary and shrinks each sample until it fits.

    In 2024 the tokens to generate are not subtracted, so a sample may be up to 50 tokens longer than `limit`.
    """

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.room = self.limit if self.ruler_version == 2024 else self.limit - self.tokens_to_generate
        self.step = max(self.room // 32, 1)

    def samples(self) -> Iterator[Prompt]:
        vocabulary = self.vocabulary()
        units = self.room // LETTERS
        if units < 1 or len(vocabulary) <= ASKED:
            raise self.unfit()
        while self.count_tokens(self.write(vocabulary, units)) < self.room:
            units += self.step
        units -= self.step
        return self.endless(units)

    def endless(self, units: int) -> Iterator[Prompt]:
        index = 0
        while True:
            yield self.draw(units, index)
            index += 1

    def vocabulary(self) -> list[str]:
        size = self.room // 50
        words = ["".join(self.rng.choices(string.ascii_lowercase, k=LETTERS)) for _ in range(size)]
        while len(set(words)) < size:
            words.append("".join(self.rng.choices(string.ascii_lowercase, k=LETTERS)))
        words = sorted(set(words))
        Random(self.seed).shuffle(words)
        return ["...", *words[1:]]

    def write(self, vocabulary: list[str], units: int) -> str:
        ranks = np.arange(1, len(vocabulary) + 1)
        counts = (units * (ranks**-ALPHA) / ZETA).astype(int)
        shown = [word for word, times in zip(vocabulary, counts, strict=True) for _ in range(times)]
        Random(self.seed).shuffle(shown)
        return (FWE + FWE_PREFIX).format(context=" ".join(shown))

    def probe(self, units: int) -> int:
        return self.count_tokens(self.write(self.vocabulary(), units))

    def draw(self, units: int, index: int) -> Prompt:
        vocabulary = self.vocabulary()
        while self.count_tokens(text := self.write(vocabulary, units)) > self.room and units > 0:
            units -= self.step
        answers = tuple(vocabulary[1 : 1 + ASKED])
        if units < 1 or not all(answer in text for answer in answers):
            raise self.unfit()
        return Prompt(text, answers, self.count_tokens(text) + self.tokens_to_generate, units)
