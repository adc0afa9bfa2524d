r"""The final answer of a solution: \boxed{}, ####, "answer is", or the last number."""

from __future__ import annotations

import re
from itertools import accumulate

NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
SAID = re.compile(r"answer(?:\s+is)?\s*:?\s*(?:is\s+)?(.+)", re.IGNORECASE)


def find_answer(text: str) -> str | None:
    r"""What the text gives as its answer; None where it names none.

    >>> find_answer(r"\boxed{\frac{1}{2}} or 0.5"), find_answer("2 + 2 = 4\n#### 4"), find_answer("It is 3 or 4.")
    ('\\frac{1}{2}', '4', '4')
    """
    boxed = find_boxed(text)
    if boxed is not None:
        return boxed
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0].strip()
    said = [match[1] for match in SAID.finditer(text)]
    numbers = NUMBER.findall(said[-1] if said else "") or NUMBER.findall(text)[-1:]
    return numbers[0].rstrip(",") if numbers else None


def find_boxed(text: str) -> str | None:
    r"""What the last \boxed{...} holds, braces inside it included; one that is never closed does not count.

    >>> find_boxed(r"\boxed{1} and \boxed{\sqrt{2}}"), find_boxed(r"\boxed 7 "), find_boxed(r"\boxed{3")
    ('\\sqrt{2}', '7', None)
    """
    for match in reversed([*re.finditer(r"\\(?:boxed|fbox)\s*", text)]):
        rest = text[match.end() :]
        if not rest.startswith("{"):
            word = re.match(r"[^\s$.,]+", rest)
            if word:
                return word[0]
            continue
        depth = accumulate({"{": 1, "}": -1}.get(letter, 0) for letter in re.sub(r"\\[{}]", "xx", rest))
        end = next((i for i, open_braces in enumerate(depth) if open_braces == 0), None)
        if end is not None:
            return rest[1:end].strip()
    return None
