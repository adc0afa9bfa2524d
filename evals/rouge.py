"""Two ROUGE-L scores that are not the same: that of the package `rouge` 1.0.1 (LongBench's) and Google's `rouge-score`.

Both rest on longest common subsequences, computed here bit by bit (Hyyro 2004): a row of the table is one integer, so
that two texts of 700 words take milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

TOO_DEEP = 991
"""Steps through the table with which the package's recursive code ends in a RecursionError under LongBench's eval.py:
Python's limit of 1000 less the frames below (measured, Python 3.11)."""


def match_rows(first: Sequence[str], second: Sequence[str]) -> list[int]:
    """The table of longest common subsequences of all prefixes: one integer for each prefix of `first`.

    Bit j of row i is 0 where the subsequence of first[:i] and second[:j + 1] is one longer than that of second[:j].
    """
    places: dict[str, int] = {}
    for place, word in enumerate(second):
        places[word] = places.get(word, 0) | 1 << place
    full = (1 << len(second)) - 1
    rows = [full]
    for word in first:
        row = rows[-1]
        same = row & places.get(word, 0)
        rows.append((row + same | row - same) & full)
    return rows


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    >>> lcs_length("a b c d".split(), "b d c a".split())
    2
    """
    return len(second) - match_rows(first, second)[-1].bit_count()


def lcs_words(first: Sequence[str], second: Sequence[str]) -> tuple[set[str], int]:
    """Words of the longest common subsequence that the package `rouge` finds among the equally long, and its steps.

    From the end: a common word is taken; otherwise `first` is shortened only if that alone keeps the length.

    >>> sorted(lcs_words("a b c d".split(), "b d c a".split())[0])
    ['b', 'd']
    """
    rows = match_rows(first, second)
    words = set()
    i, j, steps = len(first), len(second), 0
    while i and j:
        steps += 1
        if first[i - 1] == second[j - 1]:
            words.add(first[i - 1])
            i, j = i - 1, j - 1
        elif rows[i] >> (j - 1) & 1:
            j -= 1
        else:
            i -= 1
    return words, steps


def rouge_l(prediction: str, reference: str, too_deep: int | None = TOO_DEEP) -> float:
    """LongBench's ROUGE-L: f of the package `rouge` 1.0.1. Sentences end at every ".", words at blanks, sets of words
    count.

    too_deep   0 for sentences so long that the package ends in a RecursionError, which LongBench scores 0; None: never

    >>> round(rouge_l("the the the the", "the report"), 6)
    0.666667
    """
    predicted, expected = sentences(prediction), sentences(reference)
    if not predicted or not expected:
        return 0.0
    common: set[str] = set()
    for one in expected:
        for other in predicted:
            words, steps = lcs_words(one, other)
            if too_deep is not None and steps >= too_deep:
                return 0.0
            common |= words
    precision = len(common) / len({word for words in predicted for word in words})
    recall = len(common) / len({word for words in expected for word in words})
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def sentences(text: str) -> list[list[str]]:
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def google_rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L f of the package `rouge-score` without stemming: lower case, letters and digits only, repetitions count.

    >>> google_rouge_l("The cat sat.", "the cat")
    0.8
    """
    predicted, expected = (re.findall(r"[a-z0-9]+", text.lower()) for text in (prediction, reference))
    common = lcs_length(expected, predicted)
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)
