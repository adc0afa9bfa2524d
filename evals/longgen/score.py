"""How much of a list an answer has, in order."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

WORDS = ("copy", "reverse")
"""The tasks whose items are words."""

PATTERNS: Mapping[str, str] = {
    "copy": r"[a-z]+",
    "reverse": r"[a-z]+",
    "numbers": r"(?<!\d)\d{7}(?!\d)",
    "uuids": r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "chain": r"(?<![A-Z])[A-Z]{5}(?![A-Z])",
}
"""What an item looks like in an answer that may have other things between two. A tally is parted at commas."""


def read_items(task: str, prediction: str) -> list[str]:
    """The items that an answer lists. Capitals of words make no difference.

    >>> read_items("tally", " cat 1, Dog 1,cat  2.\\n\\nList: dog")
    ['cat 1', 'dog 1', 'cat 2']
    >>> read_items("numbers", " abject-: 1234567, bold-: 7654321.")
    ['1234567', '7654321']
    """
    if task in PATTERNS:
        return re.findall(PATTERNS[task], prediction.lower() if task in WORDS else prediction)
    line = prediction.strip().partition("\n")[0].rstrip(". ")
    return [" ".join(part.lower().split()) for part in line.split(",") if part.strip()]


def score_items(found: Sequence[str], wanted: Sequence[str]) -> dict[str, float]:
    """in_order: the longest common subsequence's part of the longer list, so that an item left out costs one item, and
    one too many does. prefix: the part of the list that is right before the first difference. exact: 1 if all is right.

    >>> score_items(["a", "c", "d"], ["a", "b", "c", "d"])
    {'in_order': 0.75, 'prefix': 0.25, 'exact': 0.0}
    """
    same = next((i for i, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]), None)
    prefix = min(len(found), len(wanted)) if same is None else same
    return {
        "in_order": count_common(found, wanted) / max(len(found), len(wanted)),
        "prefix": prefix / len(wanted),
        "exact": float(list(found) == list(wanted)),
    }


def count_common(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    best = [0] * (len(b) + 1)
    for item in a:
        before = 0
        for i, other in enumerate(b, 1):
            before, best[i] = best[i], before + 1 if item == other else max(best[i], best[i - 1])
    return best[-1]
