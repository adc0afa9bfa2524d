"""Chat templates: a user's text as its model wants to see it, and thinking models' traces, which are no answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

TRACES = {
    "[THINK]": "[/THINK]",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|inner_prefix|>": "<|inner_suffix|>",
    "<|channel>thought": "<channel|>",
}
"""Tags around a trace, beside those of the form <think>, </think>."""

NAME = r"[a-z_:]*(?:think|thought|reason)[a-z_:]*"  # think, thinking, seed:think, longcat_think ...
OPENS = re.compile("|".join([f"<{NAME}>", *map(re.escape, TRACES)]))
CLOSES = re.compile("|".join([f"</{NAME}>", *map(re.escape, TRACES.values())]))
MAY_OPEN = re.compile(r"[<\[][^\s<>/\[\]]*(?:think|thought|reason)[^\s<>/\[\]]*[>\]]", re.IGNORECASE)


DATE_CODES = ("%-d", "%-m", "%d", "%m", "%y", "%Y", "%b", "%B", "%a", "%A", "%j")
"""What templates ask `strftime_now` for."""


def render(
    tokenizer: Any,
    content: str,
    thinking: bool = False,
    day: date | None = None,
    earlier: Sequence[Mapping[str, str]] = (),
) -> tuple[str, str]:
    """The chat template around a user's text: (up to the end of the text, the rest).

    thinking: what the template's own switch is set to, `enable_thinking` in most and `thinking` in some. Without it a
    trace that the template opens all the same is closed, so that what follows is the answer. day: what the template
    takes for today; None: today. earlier: the messages before it, {role, content}. Raises a one-line ValueError for a
    template that cannot be rendered, that does not hold the text exactly once, or that leaves a trace open.
    """
    end = "#" * 10  # marks the end of the user's text
    while end in content or end in str(tokenizer.chat_template):
        end += "#"
    options: dict[str, Any] = {"add_generation_prompt": True, "tokenize": False}
    options |= {"enable_thinking": thinking, "thinking": thinking}
    if day is not None:
        options["chat_template"] = pin_date(tokenizer.get_chat_template(), day)
    try:
        text = str(tokenizer.apply_chat_template([*earlier, {"role": "user", "content": content + end}], **options))
    except Exception as error:  # a template is a program of its own: what goes wrong in it has no common kind
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"its chat template cannot be rendered, {reason[:200]}: use model.chat=false") from error
    if (times := text.count(end)) != 1:
        held = "does not hold the user's text" if times == 0 else f"holds the user's text {times} times"
        raise ValueError(f"its chat template {held}, it must be there once: use model.chat=false")
    head, _, tail = text.rpartition(end)  # a text may end with signs of that kind
    return head, tail if (opened := open_trace(tail)) is None else close_trace(tail, opened, thinking)


def render_turn(tokenizer: Any, content: str, thinking: bool = False, day: date | None = None) -> tuple[str, str]:
    """What the chat template puts between an assistant's answer and the end of the user's next text, and the rest.

    The arguments are `render`'s. Raises a one-line ValueError for a template that does not hold such a conversation as
    it is.
    """
    answered = "%" * 10  # marks the end of an answer
    while answered in content or answered in str(tokenizer.chat_template):
        answered += "%"
    earlier = [{"role": "user", "content": "?"}, {"role": "assistant", "content": answered}]
    head, tail = render(tokenizer, content, thinking, day, earlier)
    if head.count(answered) != 1:
        raise ValueError("its chat template does not hold an earlier answer as it is: use model.chat=false")
    return head.partition(answered)[2], tail


def open_trace(tail: str) -> str | None:
    """The tag of a trace that is open where a template's text ends. Raises ValueError for one that nobody here knows
    how to close."""
    rest = tail[max((tag.end() for tag in CLOSES.finditer(tail)), default=0) :]
    known = OPENS.findall(rest)
    if known:
        return str(known[-1])
    if other := MAY_OPEN.search(CLOSES.sub("", rest)):
        raise ValueError(f"its chat template may leave a trace open ({other[0]}): use model.chat=false")
    return None


def close_trace(tail: str, opened: str, thinking: bool) -> str:
    """An empty trace, as Qwen3's template writes it."""
    if thinking:
        raise ValueError(
            f"its chat template opens the trace itself ({opened}), and then no trace can be told from an answer: "
            "use model.thinking=false"
        )
    before, _, begun = tail.rpartition(opened)
    return f"{before}{opened}{begun.rstrip()}\n\n{TRACES.get(opened, opened.replace('<', '</'))}\n\n"


def drop_trace(tokens: list[int], decode: Callable[[list[int]], str]) -> tuple[list[int], bool]:
    """The tokens of an answer after the model's trace, and whether there was one; none after a trace that does not end.

    decode: token ids -> text, special tokens included, because tags may be such. A trace stands at the beginning. Its
    opening tag may be missing, where a model goes on thinking that was told not to.
    """
    text = decode(tokens)
    opened = OPENS.match(text.lstrip())
    closed = CLOSES.search(text)
    if closed is None:
        return ([], True) if opened else (tokens, False)
    if opened is None and OPENS.search(text, 0, closed.start()):
        return tokens, False  # the answer speaks of tags
    low, high = 0, len(tokens)  # the fewest tokens that hold the closing tag
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if len(decode(tokens[:middle])) >= closed.end() else (middle + 1, high)
    return tokens[low:], True


def parse_date(text: str | None) -> date | None:
    """YYYY-MM-DD as a date. Raises ValueError for anything else."""
    try:
        return None if text is None else date.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"date={text} is no date: write it as 2024-07-26") from None


def pin_date(template: str, day: date) -> str:
    """The chat template with a `strftime_now` of its own, the function by which templates ask for today."""
    said = "".join(f" | replace('{code}', '{day.strftime(code)}')" for code in DATE_CODES)
    return f"{{% macro strftime_now(format) %}}{{{{ format{said} }}}}{{% endmacro %}}{{{{ '' }}}}{template}"
