"""Where a RULER prompt is cut for question-agnostic compression: kvpress's rule (create_huggingface_dataset.py)."""

from __future__ import annotations

import re

QUESTION = {
    "niah": re.compile(r"What (?:is|are all) the special magic"),
    "vt": re.compile(r"Question: Find all variables that are assigned the value"),
    "cwe": re.compile(r"Question: What are the 10 most common words in the above list\?"),
    "fwe": re.compile(r"Question: Do not provide any explanation\."),
    "qa": re.compile(r"Answer the question based on the given documents\."),
}
ANSWER = {"niah": re.compile(r"The special magic")}
OTHER_ANSWER = re.compile(r"Answer:")


def split(text: str, family: str) -> tuple[str, str, str]:
    """(context, question, answer prefix), whose concatenation is `text`. `family` is a key of QUESTION.

    The context ends where the last question starts, so worked examples stay in it; the answer prefix starts at the
    first cue after that. The question keeps the blank before the cue.

    >>> split("Words.\\nQuestion: What are the 10 most common words in the above list? Answer: The top", "cwe")
    ('Words.\\n', 'Question: What are the 10 most common words in the above list? ', 'Answer: The top')
    """
    start = [match.start() for match in QUESTION[family].finditer(text)][-1]
    cue = ANSWER.get(family, OTHER_ANSWER).search(text, start)
    if cue is None:
        raise ValueError(f"no answer cue after the question of a RULER {family} prompt: {text[start:]!r}")
    return text[:start], text[start : cue.start()], text[cue.start() :]
