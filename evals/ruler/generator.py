"""How RULER sizes its samples: as much haystack as the length allows, found by trial, in both versions of its
code (2024, 2025).

Every trial draws random numbers, so the contents of a sample depend on the trials before it: their order is kept to the
letter. Where the originals try for ever or give samples without content, these raise a ValueError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from random import Random

MAX_REDRAWS = 100
"""How often a sample of the smallest size is drawn again because it is too long. The originals never stop."""


class Unfit(ValueError):
    """A task whose smallest sample is longer than the length asked for."""


@dataclass(frozen=True)
class Prompt:
    """`text` as the model sees it, answer prefix included; `length` in tokens, those to generate included."""

    text: str
    answers: tuple[str, ...]
    length: int
    units: int


class Generator(ABC):
    """One task at one length. `step` units (lines, words, documents) is the smallest haystack and the size of a step.

    name               for messages
    limit              tokens a sample may have, those to generate included
    tokens_to_generate RULER's generation length
    count_tokens       text -> tokens, no special tokens
    """

    step: int
    most: int | None = None  # units there are

    def __init__(
        self,
        name: str,
        limit: int,
        tokens_to_generate: int,
        count_tokens: Callable[[str], int],
        ruler_version: int = 2024,
        seed: int = 42,
    ) -> None:
        self.name, self.limit, self.ruler_version, self.seed = name, limit, ruler_version, seed
        self.tokens_to_generate = tokens_to_generate
        self.count_tokens = count_tokens
        self.rng = Random(seed)
        self.overhead = tokens_to_generate  # tokens of a sample that `probe` does not count

    @abstractmethod
    def probe(self, units: int) -> int:
        """Tokens of a trial sample: in 2024 with its answers, in 2025 without."""

    @abstractmethod
    def draw(self, units: int, index: int) -> Prompt:
        """The next sample; `index` is used only where samples come from a file."""

    def samples(self) -> Iterator[Prompt]:
        """Sample after sample. Raises Unfit if the task does not fit into `limit`."""
        units = self.fit_by_steps() if self.ruler_version == 2024 else self.fit_by_halving()
        if units < self.step:
            raise self.unfit()
        return (self.draw_fitting(units, index) for index in count())

    def draw_fitting(self, units: int, index: int) -> Prompt:
        redraws = 0
        while True:
            prompt = self.draw(units, index)
            if prompt.length <= self.limit:
                return prompt
            if units > self.step:
                units -= self.step
            elif (redraws := redraws + 1) > MAX_REDRAWS:
                raise self.unfit()

    def unfit(self) -> Unfit:
        return Unfit(
            f"ruler task {self.name} does not fit into {self.limit} tokens with this tokenizer: even {self.step} units "
            f"of haystack and {self.tokens_to_generate} tokens to generate are longer; choose a larger benchmark.length"
        )

    def fit_by_steps(self) -> int:
        """2024: step by step until a trial is too long, then one step back (0: nothing fits)."""
        units = self.step
        while True:
            length = self.probe(units) + self.overhead
            if length > self.limit:
                return units - self.step
            units += self.step
            if self.most is not None and units > self.most:
                return self.most
            if length == self.limit:
                return units  # one step too far, as in RULER: every sample then steps back

    def fit_by_halving(self) -> int:
        """2025: binary search between one step and three times an estimate; `step` if no trial fits."""
        low, high = self.step, max(self.estimate(), self.step * 2)
        best = self.step
        while low <= high:
            units = (low + high) // 2
            if self.probe(units) + self.overhead <= self.limit:
                best, low = units, units + 1
            else:
                high = units - 1
        return best

    def estimate(self) -> int:
        per_unit = self.probe(self.step) / self.step
        return int((self.limit / per_unit) * 3)
