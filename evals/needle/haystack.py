"""A haystack of sentences, filled up to a number of tokens, with needles at given depths."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import accumulate, islice
from random import Random

from evals.ruler.essays import Essays
from evals.ruler.prose import prose

Haystack = Callable[[int, Random], Sequence[str]]
"""(words, random numbers) -> the sentences of a text of about so many words."""


def write_prose(words: int, rng: Random) -> list[str]:
    """Of our own grammar: no number, and no word of a needle's key."""
    return re.split(r"(?<=\.) ", prose(words, rng))


def read_essays(essays: Essays) -> Haystack:
    """Of a piece of the essays, from a random place on, round their end."""

    def read(words: int, rng: Random) -> list[str]:
        start = rng.randrange(len(essays.words))
        turned = (essays.words[(start + i) % len(essays.words)] for i in range(words))
        whole = essays.punkt.tokenize(" ".join(turned).strip())[1:-1]  # the outer two are parts of sentences
        return [str(sentence) for sentence in whole]

    return read


def fill(counts: Sequence[int], room: int) -> int:
    """How many of the first sentences, which have `counts` tokens, have at most `room` tokens together."""
    return sum(total <= room for total in accumulate(counts))


def hide(sentences: Sequence[str], counts: Sequence[int], needles: Sequence[str], depth: float) -> str:
    """The sentences, of `counts` tokens each, with the needles between them.

    depth (0..1): the share of the haystack's tokens before the first needle. The others follow at even distances up to
    the end: needle i of n at depth + (1 - depth) i / n. Each stands at the nearest border between sentences.
    """
    borders = [0, *accumulate(counts)]
    step = (1 - depth) / len(needles)
    places = [find_nearest(borders, (depth + step * i) * borders[-1]) for i in range(len(needles))]
    pieces: list[str] = []
    for start, end, needle in zip([0, *places], places, needles, strict=False):
        pieces += [*islice(sentences, start, end), needle]
    return " ".join([*pieces, *sentences[places[-1] :]])


def find_nearest(borders: Sequence[int], at: float) -> int:
    """The index of the border nearest to `at`; the first of two that are equally near."""
    right = min(bisect_left(borders, at), len(borders) - 1)
    left = max(right - 1, 0)
    return left if at - borders[left] <= borders[right] - at else right
