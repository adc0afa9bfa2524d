"""Dialogues of RULER's task families, in RULER's wording: one context, and questions about it with their answers.

The answer names the key again (" abject-: 1234567."); RULER's metric only looks for the value. A question ends with the
blank before RULER's answer cue, because evaluation cuts the prompt there.
"""

from __future__ import annotations

import random
import string
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from evals.ruler import templates as ruler
from evals.ruler.prose import sentence
from models.tiny.tokenizer import word_list

TOKENS = {"noise": 25, "prose": 11.6, "numbers": 15, "uuids": 29, "bare": 8}
"""Approximate tokens of one line of noise, one sentence of prose, and one needle by its kind of value."""


@dataclass(frozen=True)
class Turn:
    question: str
    prefix: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """`context` is what evaluation compresses; the first turn follows it in the same user message."""

    context: str
    turns: Sequence[Turn]


@lru_cache
def _key_words() -> tuple[list[str], list[str]]:
    return sorted(set(word_list("adjective"))), sorted(set(word_list("noun")))


@lru_cache
def _list_words() -> list[str]:
    return sorted({word for kind in ("noun", "adjective", "verb") for word in word_list(kind)})


def number(rng: random.Random) -> str:
    return str(rng.randint(1_000_000, 9_999_999))


def new_uuid(rng: random.Random) -> str:
    return str(uuid.UUID(int=rng.getrandbits(128), version=4))


def word_key(rng: random.Random) -> str:
    adjectives, nouns = _key_words()
    return f"{rng.choice(adjectives)}-{rng.choice(nouns)}"


def _draw_name(rng: random.Random, letters: int = 5) -> str:
    return "".join(rng.choices(string.ascii_uppercase, k=letters))


def _hide(needles: list[str], haystack: str, tokens: float, rng: random.Random) -> str:
    """Hide the needles, in their order, at random places of a haystack of about `tokens` tokens."""
    if haystack == "noise":
        pieces, joint = [ruler.NOISE] * int(tokens / TOKENS["noise"]), "\n"
    elif haystack == "prose":
        pieces, joint = [sentence(rng) for _ in range(int(tokens / TOKENS["prose"]))], " "
    else:
        pieces, joint = [], "\n"
    places = sorted(rng.randint(0, len(pieces)) for _ in needles)
    for place, needle in zip(reversed(places), reversed(needles), strict=True):
        pieces.insert(place, needle)
    return joint.join(pieces)


def ask(found: list[tuple[str, list[str]]], kind: str) -> Turn:
    """RULER's question for the values of one key, or for one value of each of several keys."""
    keys = [key for key, _ in found]
    query = ", ".join(keys[:-1]) + ", and " + keys[-1] if len(keys) > 1 else keys[0]
    template = ruler.NIAH + ruler.NIAH_PREFIX
    if len(keys) == 1 and len(found[0][1]) == 1:
        template, kind = _singular(template), kind[:-1]
    _, _, asked = template.format(type_needle_v=kind, context="{context}", query=query).partition("{context}\n")
    question, mark, prefix = asked.partition(" The special magic")
    return Turn(
        f"{question} ", mark[1:] + prefix, "".join(_recall(key, values) + "," for key, values in found)[:-1] + "."
    )


def _recall(key: str, values: list[str]) -> str:
    """The answer names a key of words by its adjective. To copy one of 900 adjectives is learnt soon, one of 6,786
    nouns is not."""
    adjective, _, _ = key.partition("-")
    return (f" {adjective}-: " if adjective.isalpha() else " ") + ", ".join(values)


def _singular(template: str) -> str:
    return template.replace("Some", "A").replace("are all", "is").replace("are", "is")


def _needle_questions(found: list[tuple[str, list[str]]], kind: str, rng: random.Random) -> list[Turn]:
    """One question for each key, and some that ask for several keys at once, in random order."""
    turns = [ask([item], kind) for item in found]
    alone = [item for item in found if len(item[1]) == 1]
    for _ in range(max(1, len(alone) // 6) if len(alone) > 1 else 0):
        turns.append(ask(rng.sample(alone, min(len(alone), rng.choice((2, 3, 4, 4, 4)))), kind))
    rng.shuffle(turns)
    return turns


def _draw_groups(
    count: int, new_key: Callable[[], str], new_value: Callable[[], str], rng: random.Random
) -> list[tuple[str, str]]:
    """`count` (key, value) pairs in random order. About a quarter of the keys have two to four values."""
    pairs: list[tuple[str, str]] = []
    while len(pairs) < count:
        key = new_key()
        size = rng.choice((2, 3, 4, 4)) if rng.random() < 0.25 else 1
        pairs += [(key, new_value()) for _ in range(min(size, count - len(pairs)))]
    rng.shuffle(pairs)
    return pairs


def needles(
    pairs: list[tuple[str, str]], kind: str, haystack: str, tokens: int, turns: list[Turn], rng: random.Random
) -> Dialogue:
    """A dialogue whose context hides the pairs in about `tokens` tokens of noise, prose or nothing. Its instruction
    fits the first turn."""
    hidden = [ruler.NEEDLE.format(type_needle_v=kind, key=key, value=value) for key, value in pairs]
    text = _hide(hidden, haystack, tokens - 32 - len(pairs) * TOKENS[kind], rng)
    head, _, _ = ruler.NIAH.partition("{context}")
    alone = turns[0].question.startswith("What is")
    head = (_singular(head) if alone else head).format(type_needle_v=kind[:-1] if alone else kind)
    return Dialogue(f"{head}{text}\n", turns)


def niah(tokens: int, rng: random.Random, uuids: float = 0.0) -> Dialogue:
    """One needle, four keys, one key of four values, or any number; in noise, in prose or among needles only."""
    kind = "uuids" if rng.random() < uuids else "numbers"
    new_value = lambda: (new_uuid if kind == "uuids" else number)(rng)  # noqa: E731
    new_key = lambda: (new_uuid if kind == "uuids" and rng.random() < 0.4 else word_key)(rng)  # noqa: E731
    haystack = rng.choices(("noise", "prose", "needles"), (0.35, 0.4, 0.25))[0]
    most = max(1, int((tokens - 32) / TOKENS[kind]))
    shape = rng.random()
    if haystack == "needles":
        single = [(new_key(), new_value()) for _ in range(most)] if shape >= 0.5 else []
        pairs = single or _draw_groups(most, new_key, new_value, rng)
    elif shape < 0.08 or most < 5:
        pairs = [(new_key(), new_value())]
    elif shape < 0.2:
        pairs = [(new_key(), new_value()) for _ in range(4)]
    elif shape < 0.35:
        key = new_key()
        pairs = [(key, new_value()) for _ in range(4)]
    else:
        pairs = _draw_groups(max(1, int(most * rng.uniform(0.05, 0.9))), new_key, new_value, rng)
    return needles(pairs, kind, haystack, tokens, _needle_questions(group_by_key(pairs), kind, rng), rng)


def values(tokens: int, rng: random.Random) -> Dialogue:
    """One to ten keys with four values each. The order of later values takes longest to learn."""
    most = 1 if rng.random() < 0.3 else max(1, min(10, int((tokens - 32) / 60)))
    keys = [word_key(rng) for _ in range(rng.randint(1, most))]
    pairs = [(key, number(rng)) for key in keys for _ in range(4)]
    rng.shuffle(pairs)
    haystack = rng.choice(("noise", "prose"))
    return needles(pairs, "numbers", haystack, tokens, _needle_questions(group_by_key(pairs), "numbers", rng), rng)


def bare(tokens: int, rng: random.Random) -> Dialogue:
    """The lesson before RULER's wording: only keys and values, and questions for one key."""
    pairs = _draw_groups(max(1, int(tokens / TOKENS["bare"])), lambda: word_key(rng), lambda: number(rng), rng)
    context = "".join(f" {key} is: {value};" for key, value in pairs)
    found = group_by_key(pairs)
    turns = [Turn(f" {key}?", "", f"{_recall(key, values)}.") for key, values in found]
    rng.shuffle(turns)
    return Dialogue(context, turns)


def echo(tokens: int, rng: random.Random) -> Dialogue:
    """Random words, numbers and names, and then the same again: the simplest lesson in copying the next token."""
    kinds = (lambda: " " + word_key(rng), lambda: number(rng)[:3], lambda: _draw_name(rng, 2), lambda: sentence(rng))
    words = [rng.choice(kinds)() for _ in range(max(4, tokens // 6))]
    return Dialogue("".join(words), [Turn("", "", "".join(words))])


def group_by_key(pairs: list[tuple[str, str]]) -> list[tuple[str, list[str]]]:
    found: dict[str, list[str]] = {}
    for key, value in pairs:
        found.setdefault(key, []).append(value)
    return list(found.items())


def _write_chain(names: list[str], value: str) -> list[str]:
    return [f"VAR {names[0]} = {value}", *(f"VAR {new} = VAR {old} " for old, new in pairwise(names))]


def _write_tracking(
    chains: list[tuple[list[str], str]], haystack: str, tokens: float, ruler_version: int, rng: random.Random
) -> str:
    streams = [_write_chain(names, value) for names, value in chains]
    order = [index for index, stream in enumerate(streams) for _ in stream]
    rng.shuffle(order)
    statements = [streams[index].pop(0) for index in order]
    text = _hide(statements, haystack, tokens - 11 * len(statements), rng)
    return text.replace("\n", " ").replace("again.", "again.\n") if ruler_version == 2024 else text


def vt(tokens: int, rng: random.Random, example: float = 0.5, sizes: Sequence[int] = ()) -> Dialogue:
    """RULER has one chain of five names and asks for it. Training also has more and shorter chains, and other
    haystacks."""
    ruler_version = rng.choice((2024, 2024, 2024, 2025))
    head, _, question = ruler.VT.partition("{context}\n")
    prefix, example_text = ruler.VT_PREFIX[ruler_version], ""
    if tokens > 470 and rng.random() < example:
        example_text = _write_worked_example(ruler_version, rng)
        tokens -= 370
    most = max(1, int((tokens - 20) / 11))
    if not sizes:
        alone = rng.random() < 0.4 and most >= 5
        sizes = [5] if alone else _split(max(1, int(most * rng.uniform(0.1, 0.9))), rng)
    chains = [([_draw_name(rng) for _ in range(size)], str(rng.randint(10_000, 99_999))) for size in sizes]
    haystack = rng.choices(("noise", "prose"), (0.75, 0.25))[0]
    text = _write_tracking(chains, haystack, tokens - 20, ruler_version, rng)
    turns = [
        Turn(question.format(query=value) + " ", prefix[1:].format(query=value, num_v=len(names)), " ".join(names))
        for names, value in chains
    ]
    rng.shuffle(turns)
    return Dialogue(f"{example_text}{head}{text}\n", turns)


def _write_worked_example(ruler_version: int, rng: random.Random) -> str:
    """RULER's worked example. In 2024 its line ends and its question's last word are lost (evals/ruler/vt.py)."""
    names, value = [_draw_name(rng, 3) for _ in range(5)], str(rng.randint(10_000, 99_999))
    text = _write_tracking([(names, value)], "noise", 310, ruler_version, rng)
    template, prefix = ruler.VT, ruler.VT_PREFIX[ruler_version]
    if ruler_version == 2024:
        template = " ".join(template.split()[:-1])
    solved = (template + prefix).format(context=text, query=value, num_v=5)
    return f" {solved} {' '.join(names)}\n\n\n\n" if ruler_version == 2024 else f"{solved} {' '.join(names)}\n\n"


def _split(total: int, rng: random.Random) -> list[int]:
    sizes = []
    while total > 0:
        sizes.append(min(total, rng.choice((1, 2, 3, 4, 5, 5))))
        total -= sizes[-1]
    return sizes


def _number(words: Sequence[str]) -> str:
    return " ".join(f"{number}. {word}" for number, word in enumerate(words, 1))


def cwe(tokens: int, rng: random.Random) -> Dialogue:
    """Ten words that occur many times in a numbered list, with RULER's solved example if there is room.

    The answer names them in the order in which they come a second time: before that nothing sets a common word apart.
    """
    head, _, question = ruler.CWE.partition("{context}\n")
    example_text = ""
    if tokens > 400 and rng.random() < 0.85:
        words, common = _draw_word_list(40, 3, rng)
        example_text = f"{head}{_number(words)}\n{question}{ruler.CWE_PREFIX}{rng.choice(('', '', ' '))}"
        example_text += f"{_number(rng.sample(common, len(common)))}\n"
        tokens -= 290
    entries = max(30, int((tokens - 30) / 4.9))
    words, common = _draw_word_list(entries, min(rng.choice((3, 4, 5, 6, 6, 6)), entries * 8 // 100), rng)
    turn = Turn(f"{question} ", ruler.CWE_PREFIX[1:], f" {_number(common)}")
    return Dialogue(f"{example_text}{head}{_number(words)}\n", [turn])


def _draw_word_list(entries: int, times: int, rng: random.Random, common: int = 10) -> tuple[list[str], list[str]]:
    """The list, and its common words in the order of their second appearance."""
    drawn = rng.sample(_list_words(), common + entries - common * times)
    words = drawn[:common] * times + drawn[common:]
    rng.shuffle(words)
    seen: Counter[str] = Counter()
    again = []
    for word in words:
        seen[word] += 1
        if seen[word] == 2:
            again.append(word)
    return words, again


def fwe(tokens: int, rng: random.Random) -> Dialogue:
    """Coded words with Zipf frequencies (alpha 2); dots are the most frequent."""
    count = int((tokens - 24) / 2.4)
    words = ["..."] + ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(max(6, tokens // 50))]
    text = [word for rank, word in enumerate(words, 1) for _ in range(int(count * rank**-2 / 1.6449))]
    rng.shuffle(text)
    head, _, question = ruler.FWE.partition("{context}\n")
    turn = Turn(f"{question} ", ruler.FWE_PREFIX[1:], f" {' '.join(words[1:4])}.")
    return Dialogue(f"{head}{' '.join(text)}\n", [turn])


FAMILIES: dict[str, Callable[[int, random.Random], Dialogue]] = {
    "echo": echo,
    "bare": bare,
    "niah": niah,
    "values": values,
    "uuid": lambda tokens, rng: niah(tokens, rng, uuids=1.0),
    "vt": vt,
    "cwe": cwe,
    "fwe": fwe,
}
