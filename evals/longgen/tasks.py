"""The tasks of longgen: a list in the prompt, and an answer as long as the list.

| task    | the answer lists                                   | each of its items needs                            |
|---------|----------------------------------------------------|----------------------------------------------------|
| copy    | the words of a list                                | the list, and where in it the answer is            |
| reverse | the same words, from the last to the first         | the same                                           |
| tally   | every word with how often it has come so far       | the list, and the counts that the answer has named |
| numbers | the number of each of some keys                    | the question's keys, and the pairs in the prompt   |
| uuids   | the same of uuids, a longer answer                 | the same                                           |
| chain   | variables, each of which was set by the one before | the item before it, and the lines of the prompt    |

copy, reverse and tally are shown on two short lists first. The others are worded as RULER's multi-query needles and
variable tracking, with as many keys or names as the list is long, so that they can be asked of a model which knows
RULER's sentences only. Their contexts hold as many pairs or names again that nobody asks for.
"""

from __future__ import annotations

import random
import string
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from evals.longgen.words import WORDS
from evals.ruler import templates as ruler
from evals.ruler.words import read_list

SHOWN = 2
"""Solved lists in front of the one that is asked."""

SHORT = 8
"""Words of each of them."""

KINDS = 5
"""Different words in a list that is tallied."""


@dataclass(frozen=True)
class Problem:
    """context is what is compressed; question and answer_prefix follow it. items: what the answer lists, in order.
    answer: how that may be written, which tells how many tokens it takes. stop: what ends it."""

    context: str
    question: str
    answer_prefix: str
    items: tuple[str, ...]
    answer: str
    stop: tuple[str, ...] = ()


def draw_list(rng: random.Random, size: int) -> list[str]:
    """Different words."""
    return rng.sample(WORDS, size)


def draw_repeats(rng: random.Random, size: int) -> list[str]:
    """A few words again and again."""
    kinds = rng.sample(WORDS, KINDS)
    return rng.choices(kinds, k=size)


def count_so_far(words: Sequence[str]) -> list[str]:
    """Each word with how often it has come.

    >>> count_so_far(["cat", "dog", "cat"])
    ['cat 1', 'dog 1', 'cat 2']
    """
    seen: Counter[str] = Counter()
    told = []
    for word in words:
        seen[word] += 1
        told.append(f"{word} {seen[word]}")
    return told


def write_shown(
    rng: random.Random,
    size: int,
    rule: str,
    name: str,
    draw: Callable[[random.Random, int], list[str]],
    solve: Callable[[Sequence[str]], list[str]],
) -> Problem:
    """A list, solved lists before it, and a cue under which the answer goes."""
    shown = [draw(rng, SHORT) for _ in range(SHOWN)]
    words = draw(rng, size)
    blocks = [f"List: {', '.join(each)}\n{name}: {', '.join(solve(each))}\n" for each in shown]
    context = "\n".join([rule, *blocks, f"List: {', '.join(words)}\n"])
    items = solve(words)
    return Problem(context, "", f"{name}:", tuple(items), " " + ", ".join(items), stop=("\n",))


def copy(rng: random.Random, size: int) -> Problem:
    return write_shown(rng, size, "Each list is followed by a copy of it.\n", "Copy", draw_list, list)


def reverse(rng: random.Random, size: int) -> Problem:
    rule = "Each list is followed by the same words backwards, from the last to the first.\n"
    return write_shown(rng, size, rule, "Backwards", draw_list, lambda words: [*words[::-1]])


def tally(rng: random.Random, size: int) -> Problem:
    rule = "Each list is followed by a tally: every word with how often it has come so far.\n"
    return write_shown(rng, size, rule, "Tally", draw_repeats, count_so_far)


def number(rng: random.Random) -> str:
    return str(rng.randint(1_000_000, 9_999_999))


def new_uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def look_up(kind: str, draw: Callable[[random.Random], str], rng: random.Random, size: int) -> Problem:
    """Values of a kind by their keys. No two keys share an adjective, as a model may name a key by it."""
    adjectives = sorted({word for word in read_list("adjectivelist.txt") if word.isalpha()})
    nouns = sorted({word for word in read_list("nounlist.txt") if word.isalpha()})
    keys = [f"{adjective}-{rng.choice(nouns)}" for adjective in rng.sample(adjectives, 2 * size)]
    pairs = {key: draw(rng) for key in keys}
    needles = [ruler.NEEDLE.format(type_needle_v=kind, key=key, value=value) for key, value in pairs.items()]
    rng.shuffle(needles)
    asked = keys[:size]
    query = f"{', '.join(asked[:-1])}, and {asked[-1]}" if size > 1 else asked[0]
    text = ruler.NIAH.format(type_needle_v=kind, context="\n".join(needles), query=query)
    context, mark, question = text.partition("What are all")
    prefix = ruler.NIAH_PREFIX.format(type_needle_v=kind, query=query)[1:]
    answer = "".join(f" {key}: {pairs[key]}," for key in asked)
    return Problem(context, f"{mark}{question} ", prefix, tuple(pairs[key] for key in asked), answer)


def chain(rng: random.Random, size: int) -> Problem:
    """Two chains of assignments, line by line in turns at random."""
    names: set[str] = set()
    while len(names) < 2 * size:
        names.add("".join(rng.choices(string.ascii_uppercase, k=5)))
    drawn = rng.sample(sorted(names), 2 * size)
    chains, values = [drawn[:size], drawn[size:]], [str(value) for value in rng.sample(range(10_000, 100_000), 2)]
    lines = [
        [f"VAR {own[0]} = {value}", *(f"VAR {new} = VAR {old} " for old, new in pairwise(own))]
        for own, value in zip(chains, values, strict=True)
    ]
    order = [0] * size + [1] * size
    rng.shuffle(order)
    text = "\n".join([lines[which].pop(0) for which in order])
    context, mark, question = ruler.VT.format(context=text, query=values[0]).partition("Question:")
    prefix = ruler.VT_PREFIX[2025].format(num_v=size, query=values[0])[1:]
    return Problem(context, f"{mark}{question} ", prefix, tuple(chains[0]), " ".join(chains[0]))


TASKS: Mapping[str, Callable[[random.Random, int], Problem]] = {
    "copy": copy,
    "reverse": reverse,
    "tally": tally,
    "numbers": partial(look_up, "numbers", number),
    "uuids": partial(look_up, "uuids", new_uuid),
    "chain": chain,
}
