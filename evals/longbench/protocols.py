"""How a LongBench row becomes a prompt: four protocols whose numbers must not be mixed.

official     pred.py: the whole prompt is compressed, question included; cut in the middle if too long; six tasks have
             no chat template; samsum ends at a line end
defensivekv  the official text, question-agnostic: the context is compressed, the repeated instruction, the question and
             the answer cue come after it
kvpress      question-agnostic, the repeated instruction compressed with the context, chat template everywhere, 20
             tokens more to generate; the cue appears twice in triviaqa and samsum
lukv         the LU-KV authors' evaluation, a fork of kvpress: its prompts and lengths, LongBench's own scores
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from evals.longbench.catalog import Entry
from evals.task import Tokenizer

Pieces = tuple[str, str, str]
"""context (compressed), question, answer prefix"""


def whole(entry: Entry, row: Mapping[str, Any]) -> Pieces:
    text = entry.head + entry.second + entry.question + entry.cue
    return text.format(context=row["context"], input=row["input"]), "", ""


def question_after(entry: Entry, row: Mapping[str, Any]) -> Pieces:
    """qasper loses the blank before its repeated instruction, as in DefensiveKV's templates."""
    after = entry.second.lstrip(" ") + entry.question + entry.cue
    return entry.head.format(context=row["context"]), after.format(input=row["input"]), ""


def kvpress(entry: Entry, row: Mapping[str, Any]) -> Pieces:
    asked = row["input"].removesuffix(entry.kvpress_cue) if entry.kvpress_cue else row["input"]
    context = (entry.head + entry.second).format(context=row["context"])
    return context, entry.question.format(input=asked), entry.kvpress_cue or entry.cue


@dataclass(frozen=True)
class Protocol:
    """`scoring`: the first score; `plain`: six tasks have no chat template, and samsum ends at a line end."""

    pieces: Callable[[Entry, Mapping[str, Any]], Pieces]
    cut: Callable[[str, int, Tokenizer], str]
    scoring: str
    plain: bool
    more_tokens: int = 0


def cut_middle(text: str, max_length: int, tokenizer: Tokenizer) -> str:
    """pred.py: the first and last max_length // 2 tokens, special tokens counted and dropped; the text may become a few
    tokens longer than `max_length` when it is tokenised again."""
    tokens = tokenizer.encode(text)
    if len(tokens) <= max_length:
        return text
    half = max_length // 2
    start, end = tokens[:half], tokens[-half:]
    return tokenizer.decode(start, skip_special_tokens=True) + tokenizer.decode(end, skip_special_tokens=True)


def cut_right(text: str, max_length: int, tokenizer: Tokenizer) -> str:
    """kvpress: the context's first `max_length` tokens (the chat template's tokens are not counted here)."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return text if len(tokens) <= max_length else tokenizer.decode(tokens[:max_length], skip_special_tokens=True)


PROTOCOLS: Mapping[str, Protocol] = {
    "official": Protocol(whole, cut_middle, scoring="official", plain=True),
    "defensivekv": Protocol(question_after, cut_right, scoring="official", plain=True),
    "kvpress": Protocol(kvpress, cut_right, scoring="kvpress", plain=False, more_tokens=20),
    "lukv": Protocol(kvpress, cut_right, scoring="official", plain=False, more_tokens=20),
}
