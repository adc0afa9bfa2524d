"""Contexts cut to what a model takes beside the question, the answer and its chat template."""

from __future__ import annotations

from evals.task import SLACK, Tokenizer, count_tokens, template_tokens, window

FREE_TOKENS = 64  # kept free for what cutting and tokenising again adds, and for chat templates of usual length


class NoRoom(ValueError):
    """The model has no room for a context."""


def check_max_length(max_length: int | str) -> None:
    """Raises ValueError unless benchmark.max_length is "auto" or a number of tokens."""
    if max_length != "auto" and not (isinstance(max_length, int) and max_length >= 2):
        raise ValueError(f"benchmark.max_length={max_length} must be auto or a number of tokens, at least 2")


def count_room(tokenizer: Tokenizer, after: str, max_new_tokens: int, chat: bool) -> int | None:
    """Tokens that a context may have before the text `after` and an answer; None: the tokenizer knows no limit.

    Raises NoRoom where that is less than two.
    """
    longest = window(tokenizer)
    if longest is None:
        return None
    free = max(FREE_TOKENS, template_tokens(tokenizer) + SLACK) if chat else FREE_TOKENS
    room = longest - max_new_tokens - count_tokens(tokenizer, after) - free
    if room < 2:
        raise NoRoom(f"the model's {longest} tokens leave no room for a context beside an answer of {max_new_tokens}")
    return room


def cut_right(text: str, max_length: int, tokenizer: Tokenizer) -> str:
    """kvpress: the context's first `max_length` tokens (the chat template's tokens are not counted here)."""
    tokens = tokenizer.encode(text, add_special_tokens=False)
    return text if len(tokens) <= max_length else tokenizer.decode(tokens[:max_length], skip_special_tokens=True)
