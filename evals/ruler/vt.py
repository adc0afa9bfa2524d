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
EXAMPLE_STEP = 5
EXAMPLE_VALUE = "12345"  # 2025: a placeholder, replaced in every sample


class VariableTracking(Generator):
    """`example=False` leaves the worked example out: not RULER's task, but one that fits below 1000 tokens."""

    def __init__(self, example: bool = True, **common: Any) -> None:
        super().__init__(**common)
        self.step = 10 if self.vintage == 2024 or self.limit >= 4096 else 5
        self.values = np.random.RandomState(self.seed)
        self.example = ""
        self.example_names: tuple[str, ...] = ()
        if example:
            self.write_example(common)
        else:
            self.step = 5

    def write_example(self, common: dict[str, Any]) -> None:
        writer = ExampleWriter(**common | {"limit": EXAMPLE_LIMIT})
        writer.rng, writer.values = self.rng, self.values  # one stream of random numbers for examples and samples
        prompt = next(writer.samples())
        ending = "\n\n" if self.vintage == 2024 else "\n"
        self.example = prompt.text + " " + " ".join(prompt.answers) + ending
        self.example_names = prompt.answers
        self.overhead += self.count_tokens(self.example)

    def names(self, letters: int) -> list[str]:
        while True:
            names = ["".join(self.rng.choices(string.ascii_uppercase, k=letters)) for _ in range(HOPS + 1)]
            if len(set(names)) == HOPS + 1:
                return names

    def number(self) -> str:
        return str(self.values.randint(10000, 99999))

    def build(self, units: int, letters: int = 5, value: str | None = None) -> tuple[str, list[str]]:
        names = self.names(letters)
        value = value or self.number()
        chain = [f"VAR {names[0]} = {value}"]
        chain += [f"VAR {name} = VAR {before} " for before, name in pairwise(names)]
        lines = [NOISE + "\n" if self.vintage == 2024 else NOISE] * units
        if self.vintage == 2024 and len(lines) <= len(chain):
            # few lines: cut into sentences so that every assignment finds its own place (line ends stay pieces)
            pieces = [piece for line in lines for piece in line.split(".")]
            lines = [piece + "." if piece.strip() else piece for piece in pieces]
        places = sorted(self.rng.sample(range(len(lines)), len(chain)))
        for shift, (place, assignment) in enumerate(zip(places, chain, strict=True)):
            lines.insert(place + shift, assignment)
        context = (" " if self.vintage == 2024 else "\n").join(lines).replace(". \n", ".\n")
        return self.template().format(context=context, query=value, num_v=HOPS + 1), names

    def template(self) -> str:
        return VT + VT_PREFIX[self.vintage]

    def probe(self, units: int) -> int:
        text, names = self.build(units)
        return self.count_tokens(f"{text} {names}" if self.vintage == 2024 else text)

    def draw(self, units: int, index: int) -> Prompt:
        text, names = self.build(units)
        if self.vintage == 2024:
            length = (
                self.count_tokens(text) + self.overhead
            )  # as RULER counts: without the line ends around the example
            text = f" {self.example}\n\n{text}" if self.example else text
        else:
            text = f"{self.random_example()}\n{text}" if self.example else text
            length = self.count_tokens(text) + self.tokens_to_generate
        return Prompt(text, tuple(names), length, units)

    def random_example(self) -> str:
        """2025: the example with other names and another value."""
        example = self.example
        for name in self.example_names:
            example = example.replace(name, "".join(self.rng.choices(string.ascii_uppercase, k=len(name))))
        return example.replace(EXAMPLE_VALUE, self.number())


class ExampleWriter(VariableTracking):
    """The worked example: three-letter names, 500 tokens."""

    def __init__(self, **common: Any) -> None:
        super().__init__(example=False, **common)
        self.step = EXAMPLE_STEP
        if self.vintage == 2025:
            self.overhead = self.tokens_to_generate = 0

    def build(self, units: int, letters: int = 3, value: str | None = None) -> tuple[str, list[str]]:
        return super().build(units, letters, value or (EXAMPLE_VALUE if self.vintage == 2025 else None))

    def template(self) -> str:
        if self.vintage == 2025:
            return super().template()
        # RULER cuts a model's own closing tag off the example; where there is none, the question's last word and every
        # line end go instead.
        return " ".join(VT.split()[:-1]) + VT_PREFIX[2024]
