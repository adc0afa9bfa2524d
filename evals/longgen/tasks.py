"""The tasks of longgen: a list in the prompt, and an answer as long as the list.

| task    | the answer lists                                   | each of its items needs                            |
|---------|----------------------------------------------------|----------------------------------------------------|
| copy    | the words of a numbered list                       | the list, and the number that the answer is at     |
| reverse | the same words, from the last to the first         | the same                                           |
| tally   | every word with how often it has come so far       | the list, and the counts that the answer has named |
| numbers | the number of each of some keys                    | the question's keys, and the pairs in the prompt   |
| uuids   | the same of uuids, a longer answer                 | the same                                           |
| chain   | variables, each of which was set by the one before | the item before it, and the lines of the prompt    |

A tally is shown on two short lists first. The last three are worded as RULER's multi-query needles and variable
tracking, with as many keys or names as the list is long, so that they can be asked of a model which knows RULER's
sentences only. Their contexts hold as many pairs or names again that nobody asks for.
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


def write_lines(numbers: Sequence[int], words: Sequence[str]) -> str:
    return "\n".join(f"{number}. {word}" for number, word in zip(numbers, words, strict=True))


def rewrite(question: str, step: int, rng: random.Random, size: int) -> Problem:
    """Write a numbered list again, from the first line on (step 1) or from the last (-1)."""
    words, numbers = rng.sample(WORDS, size), range(1, size + 1)
    context = f"Here is a list of {size} words.\n\n{write_lines(numbers, words)}\n"
    begin, answer = numbers[::step][0], write_lines(numbers[::step], words[::step])
    asked = "\n" + question.format(size=size)
    items = tuple(words[::step])
    return Problem(context, asked, f"{begin}.", items, answer.removeprefix(f"{begin}."), stop=("\n\n",))


COPY = "Write the whole list again, line by line, from 1 to {size}."
REVERSE = "Write the whole list again backwards, line by line, from {size} down to 1."


def tally(rng: random.Random, size: int) -> Problem:
    """A list, tallied lists before it, and a cue under which the answer goes."""
    rule = "Each list is followed by a tally: every word with how often it has come so far.\n"
    lists = [draw_repeats(rng, length) for length in (*[SHORT] * SHOWN, size)]
    solved = [", ".join(count_so_far(words)) for words in lists]
    shown = [f"List: {', '.join(words)}\nTally: {told}\n" for words, told in zip(lists, solved, strict=True)]
    shown[-1] = f"List: {', '.join(lists[-1])}\n"
    context = "\n".join([rule, *shown])
    return Problem(context, "", "Tally:", tuple(count_so_far(lists[-1])), f" {solved[-1]}", stop=("\n",))


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
    "copy": partial(rewrite, COPY, 1),
    "reverse": partial(rewrite, REVERSE, -1),
    "tally": tally,
    "numbers": partial(look_up, "numbers", number),
    "uuids": partial(look_up, "uuids", new_uuid),
    "chain": chain,
}
