"""How a LongBench row becomes a prompt: five protocols whose numbers must not be mixed.

official     pred.py: the whole prompt is compressed, question included; cut in the middle if too long; six tasks have
             no chat template; samsum ends at a line end
agnostic     the official prompt, token for token, but only what stands before the question is compressed (before the
             answer cue where there is no question): with the full cache it is the official protocol
defensivekv  the official text, question-agnostic: the context is compressed, the repeated instruction, the question and
             the answer cue come after it
kvpress      question-agnostic, the repeated instruction compressed with the context, chat template everywhere, 20
             tokens more to generate; the cue appears twice in triviaqa and samsum
lukv         the LU-KV authors' evaluation, a fork of kvpress: its texts and lengths, LongBench's own scores. The cue
             comes before the rest of the chat template; five tasks have neither template nor BOS; triviaqa has no cue
             of its own (its input ends in one)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from evals.fit import cut_right
from evals.longbench.catalog import CATALOG, Entry
from evals.task import Tokenizer

T = TypeVar("T")
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


def before_question(entry: Entry, row: Mapping[str, Any]) -> Pieces:
    """The official text, in pieces."""
    context, question = entry.head + entry.second, entry.question
    return context.format(context=row["context"]), question.format(input=row["input"]), entry.cue


def cue_in_question(entry: Entry, row: Mapping[str, Any]) -> Pieces:
    context, question, cue = kvpress(entry, row)
    return context, question + ("" if entry is CATALOG["triviaqa"] else cue), ""


def bare_tasks(entry: Entry) -> str:
    """The authors run the English tasks only: lsht, Chinese, is none of their five without a template."""
    return "apart" if entry.chat or entry.chinese else "bare"


@dataclass(frozen=True)
class Protocol:
    """
    cut         (pieces, tokens that there is room for, tokenizer) -> shorter pieces; None: the compressed part's
                token ids are cut, at the tokenizer's own limit
    scoring     the first score: official or kvpress
    judge       whose classes a sample is judged by: the file's first row's, its last row's, or the row's own
    plain       six tasks have no chat template, and samsum ends at a line end
    layout      task -> how its pieces become token ids (LoadedModel.prompt_ids)
    """

    pieces: Callable[[Entry, Mapping[str, Any]], Pieces]
    cut: Callable[[Pieces, int, Tokenizer], Pieces] | None
    scoring: str
    judge: str
    plain: bool
    layout: Callable[[Entry], str] = lambda entry: "apart"
    more_tokens: int = 0
    first_token_may_end: bool = True

    def judged_by(self, rows: Sequence[T], own: T) -> T:
        """Of a file's rows the one whose classes count for the row `own`."""
        return {"first": rows[0], "last": rows[-1]}.get(self.judge, own)


def whole_cut(pieces: Pieces, room: int, tokenizer: Tokenizer) -> Pieces:
    """The whole prompt cut as pred.py does, in the middle. Where the question lies there, what is left of it, or the
    text after the cut, is the question."""
    context, question, cue = pieces
    first, last = halves("".join(pieces), room, tokenizer)
    kept = first + last
    if kept.endswith(question + cue):
        return kept[: len(kept) - len(question + cue)], question, cue
    border = len(context) if first.startswith(context) else len(first)
    return kept[:border], kept[border:], ""


def context_cut(pieces: Pieces, room: int, tokenizer: Tokenizer) -> Pieces:
    return cut_right(pieces[0], room, tokenizer), *pieces[1:]


def cut_middle(text: str, max_length: int, tokenizer: Tokenizer) -> str:
    """pred.py: the first and last max_length // 2 tokens, special tokens counted and dropped; the text may become a few
    tokens longer than `max_length` when it is tokenised again."""
    return "".join(halves(text, max_length, tokenizer))


def halves(text: str, max_length: int, tokenizer: Tokenizer) -> tuple[str, str]:
    """What `cut_middle` leaves before and after the cut; (text, "") without one."""
    tokens = tokenizer.encode(text)
    if len(tokens) <= max_length:
        return text, ""
    half = max_length // 2
    start, end = tokens[:half], tokens[-half:]
    return tokenizer.decode(start, skip_special_tokens=True), tokenizer.decode(end, skip_special_tokens=True)


PROTOCOLS: Mapping[str, Protocol] = {
    "official": Protocol(whole, whole_cut, scoring="official", judge="last", plain=True),
    "agnostic": Protocol(
        before_question, whole_cut, scoring="official", judge="last", plain=True, layout=lambda entry: "whole"
    ),
    "defensivekv": Protocol(question_after, context_cut, scoring="official", judge="own", plain=True),
    "kvpress": Protocol(
        kvpress,
        context_cut,
        scoring="kvpress",
        judge="first",
        plain=False,
        more_tokens=20,
        first_token_may_end=False,
    ),
    "lukv": Protocol(
        cue_in_question,
        None,
        scoring="official",
        judge="first",
        plain=False,
        layout=bare_tasks,
        more_tokens=20,
        first_token_may_end=False,
    ),
}
