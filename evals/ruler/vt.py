"""Variable tracking: which variables hold a value, by a chain of assignments among noise (variable_tracking.py)."""

from __future__ import annotations

import string
from itertools import pairwise
from typing import Any

import numpy as np

from evals.ruler.generator import Generator, Prompt
from evals.ruler.templates import NOISE, VT, VT_PREFIX

HOPS = 4
EXAMPLE_LIMIT = 500  # tokens of the worked example that precedes every question
EXAMPLE_VALUE = "12345"  # 2025: a placeholder, replaced in every sample


class VariableTracking(Generator):
    """The bare task, without the worked example of RULER's: it fits below 1000 tokens. Names have `letters` letters."""

    step = 5
    letters = 5

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.values = np.random.RandomState(self.seed)
        self.template = VT + VT_PREFIX[self.ruler_version]

    def names(self) -> list[str]:
        while True:
            names = ["".join(self.rng.choices(string.ascii_uppercase, k=self.letters)) for _ in range(HOPS + 1)]
            if len(set(names)) == HOPS + 1:
                return names

    def value(self) -> str:
        return str(self.values.randint(10000, 99999))

    def build(self, units: int) -> tuple[str, list[str]]:
        names, value = self.names(), self.value()
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
        lines = [NOISE + "\n" if self.ruler_version == 2024 else NOISE] * units
        if self.ruler_version == 2024 and len(lines) <= len(chain):
            # few lines: cut into sentences so that every assignment finds its own place (line ends stay pieces)
            pieces = [piece for line in lines for piece in line.split(".")]
            lines = [piece + "." if piece.strip() else piece for piece in pieces]
        places = sorted(self.rng.sample(range(len(lines)), len(chain)))
        for shift, (place, assignment) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + shift, assignment)
        context = (" " if self.ruler_version == 2024 else "\n").join(lines).replace(". \n", ".\n")
        return self.template.format(context=context, query=value, num_v=HOPS + 1), names

    def probe(self, units: int) -> int:
        text, names = self.build(units)
        return self.count_tokens(f"{text} {names}" if self.ruler_version == 2024 else text)

    def draw(self, units: int, index: int) -> Prompt:
        text, names = self.build(units)
        return Prompt(text, tuple(names), self.count_tokens(text) + self.tokens_to_generate, units)


class Example(VariableTracking):
    """RULER's worked example: three-letter names, 500 tokens, random numbers from those of the samples after it."""

    letters = 3

    def __init__(self, samples: VariableTracking, **common: Any) -> None:
        super().__init__(**common | {"limit": EXAMPLE_LIMIT})
        self.rng, self.values = samples.rng, samples.values
        if self.ruler_version == 2024:
            # RULER cuts a model's own closing tag off the example; where there is none, the question's last word and
            # every line end go instead
            self.template = " ".join(VT.split()[:-1]) + VT_PREFIX[2024]
        else:
            self.overhead = self.tokens_to_generate = 0

    def value(self) -> str:
        return super().value() if self.ruler_version == 2024 else EXAMPLE_VALUE


class VariableTrackingWithExample(VariableTracking):
    """RULER's vt."""

    def __init__(self, **common: Any) -> None:
        super().__init__(**common)
        self.step = 10 if self.ruler_version == 2024 or self.limit >= 4096 else 5
        prompt = next(Example(self, **common).samples())
        self.example = f"{prompt.text} {' '.join(prompt.answers)}\n" + ("\n" if self.ruler_version == 2024 else "")
        self.example_names = prompt.answers
        self.overhead += self.count_tokens(self.example)

    def draw(self, units: int, index: int) -> Prompt:
        text, names = self.build(units)
        if self.ruler_version == 2024:
            length = self.count_tokens(text) + self.overhead  # RULER forgets the line ends around the example
            text = f" {self.example}\n\n{text}"
        else:
            text = f"{self.other_example()}\n{text}"
            length = self.count_tokens(text) + self.tokens_to_generate
        return Prompt(text, tuple(names), length, units)

    def other_example(self) -> str:
        """2025: the example with other names and another value."""
        example = self.example
        for name in self.example_names:
            example = example.replace(name, "".join(self.rng.choices(string.ascii_uppercase, k=len(name))))
        return example.replace(EXAMPLE_VALUE, self.value())
