"""Needles in a haystack: one of RULER's eight niah tasks (niah.py)."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from evals.ruler.generator import Generator, Prompt
from evals.ruler.templates import NEEDLE, NIAH, NIAH_PREFIX, NOISE
from evals.ruler.words import needle_words

DEPTHS = [int(depth) for depth in np.round(np.linspace(0, 100, num=40, endpoint=True))]
"""Where a needle may lie between sentences, in per cent."""


@dataclass(frozen=True)
class Needles:
    """Keys hidden, values of each key, keys asked for; and what they look like: "words", "numbers" or "uuids"."""

    keys: int = 1
    values: int = 1
    queries: int = 1
    key_type: str = "words"
    value_type: str = "numbers"


class Haystack(ABC):
    """Text in units; `steps` = (below 4096 tokens, from there on)."""

    steps: tuple[int, int]
    most: int | None = None

    @abstractmethod
    def hide(self, needles: Sequence[str], units: int, generator: Niah) -> str:
        """A haystack of `units` with the needles in it."""


class Lines(Haystack):
    """Needles are lines among others: the same noise everywhere, or needles that nobody asks for."""

    steps = (5, 25)

    def __init__(self, distractors: bool = False) -> None:
        self.distractors = distractors

    def hide(self, needles: Sequence[str], units: int, generator: Niah) -> str:
        if self.distractors:
            lines = [generator.needle(generator.key(), generator.value()) for _ in range(units)]
        else:
            lines = [NOISE] * units
        places = sorted(generator.rng.sample(range(units), len(needles)), reverse=True)
        for place, needle in zip(places, needles, strict=True):
            lines.insert(place, needle)
        return "\n".join(lines)


class Text(Haystack):
    """Needles between the sentences of a text: `sentences(n, generator)` gives those of its first n words."""

    def __init__(
        self,
        sentences: Callable[[int, Niah], Sequence[str]],
        steps: tuple[int, int] = (500, 500),
        most: int | None = None,
    ) -> None:
        self.sentences, self.steps, self.most = sentences, steps, most

    def hide(self, needles: Sequence[str], units: int, generator: Niah) -> str:
        sentences = self.sentences(units, generator)
        places = sorted(int(len(sentences) * (depth / 100)) for depth in generator.rng.sample(DEPTHS, len(needles)))
        pieces = []
        for start, end, needle in zip([0, *places], places, needles, strict=False):
            pieces += [" ".join(sentences[start:end]), needle]
        pieces.append(" ".join(sentences[places[-1] :]))
        return " ".join(pieces)


class Niah(Generator):
    def __init__(self, needles: Needles, haystack: Haystack, **common: Any) -> None:
        super().__init__(**common)
        self.needles, self.haystack = needles, haystack
        self.step = haystack.steps[self.limit >= 4096]
        self.most = haystack.most if self.ruler_version == 2024 else None

    def random(self, kind: str) -> str:
        if kind == "numbers":
            return str(self.rng.randint(1_000_000, 9_999_999))
        if kind == "words":
            return self.rng.choice(needle_words())
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def key(self) -> str:
        return self.random(self.needles.key_type)

    def value(self) -> str:
        return self.random(self.needles.value_type)

    def needle(self, key: str, value: str) -> str:
        return NEEDLE.format(type_needle_v=self.needles.value_type, key=key, value=value)

    def build(self, units: int) -> tuple[str, list[str]]:
        hidden, needles = [], []
        for _ in range(max(self.needles.keys, self.needles.queries)):
            key, values = self.key(), []
            for _ in range(self.needles.values):
                values.append(self.value())
                needles.append(self.needle(key, values[-1]))
            hidden.append((key, values))
        Random(self.seed).shuffle(needles)
        context = self.haystack.hide(needles, units, self)
        asked = [hidden[number] for number in self.rng.sample(range(len(hidden)), self.needles.queries)]
        keys = [key for key, _ in asked]
        query = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
        template, value_type = NIAH + NIAH_PREFIX, self.needles.value_type
        if self.needles.queries * self.needles.values == 1:
            template = template.replace("Some", "A").replace("are all", "is").replace("are", "is")
            value_type = value_type[:-1]
        text = template.format(type_needle_v=value_type, context=context, query=query)
        return text, [value for _, values in asked for value in values]

    def probe(self, units: int) -> int:
        text, answers = self.build(units)
        return self.count_tokens(text + " ".join(answers) if self.ruler_version == 2024 else text)

    def draw(self, units: int, index: int) -> Prompt:
        text, answers = self.build(units)
        return Prompt(text, tuple(answers), self.count_tokens(text) + self.tokens_to_generate, units)
