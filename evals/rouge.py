"""Two ROUGE-L scores that differ: LongBench's (of the package `rouge` 1.0.1) and Google's (of `rouge-score`).

Both need the longest common subsequence of two lists of words. It is computed with bit operations (Hyyro 2004): a row
of the dynamic programming table is one integer, so that two texts of 700 words take milliseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain

TOO_DEEP = 991
"""Steps through the table at which the package's recursive code raises RecursionError under LongBench's eval.py. It is
Python's limit of 1000 less the frames below (measured with Python 3.11)."""


def match_rows(first: Sequence[str], second: Sequence[str]) -> list[int]:
    """The dynamic programming table of longest common subsequences: one integer for each prefix of `first`.

    Bit j of row i is 0 where the longest common subsequence of first[:i] and second[:j + 1] is one word longer than
    that of first[:i] and second[:j].
    """
    positions: dict[str, int] = {}  # word -> the bits of its positions in `second`
    for position, word in enumerate(second):
        positions[word] = positions.get(word, 0) | 1 << position
    full = (1 << len(second)) - 1
    rows = [full]
    for word in first:
        row = rows[-1]
        same = row & positions.get(word, 0)
        rows.append((row + same | row - same) & full)
    return rows


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence.

    >>> lcs_length("a b c d".split(), "b d c a".split())
    2
    """
    return len(second) - match_rows(first, second)[-1].bit_count()


def lcs_words(first: Sequence[str], second: Sequence[str]) -> tuple[set[str], int]:
    """The words of the longest common subsequence that the package `rouge` finds, and the steps it takes.

    Several subsequences may be equally long. The package walks back from the end of both texts: it takes a common last
    word, and otherwise shortens `first` only if shortening `second` would lose a word.

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
    """LongBench's ROUGE-L: the F score (0..1) of the package `rouge` 1.0.1.

    Sentences end at every ".", words at blanks. A word counts once, however often it occurs.

    too_deep   score 0 where the walk takes so many steps that the package raises RecursionError, which LongBench
               scores 0. None: the true score

    >>> round(rouge_l("the the the the", "the report"), 6)
    0.666667
    """
    predicted, expected = split_sentences(prediction), split_sentences(reference)
    common = common_words(predicted, expected, too_deep)
    if not common:
        return 0.0
    precision, recall = len(common) / count_different(predicted), len(common) / count_different(expected)
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def rouge_l_recall(prediction: str, reference: str) -> float:
    """The recall (0..1) that goes with `rouge_l`: the share of the reference's different words.

    >>> rouge_l_recall("the the the the", "the report")
    0.5
    """
    predicted, expected = split_sentences(prediction), split_sentences(reference)
    common = common_words(predicted, expected, None)
    return len(common) / count_different(expected) if common else 0.0


def common_words(
    predicted: Sequence[Sequence[str]], expected: Sequence[Sequence[str]], too_deep: int | None
) -> set[str]:
    """The words of the longest common subsequences of all pairs of sentences; none where one of them is too deep."""
    common: set[str] = set()
    for one in expected:
        for other in predicted:
            words, steps = lcs_words(one, other)
            if too_deep is not None and steps >= too_deep:
                return set()
            common |= words
    return common


def count_different(sentences: Sequence[Sequence[str]]) -> int:
    return len({word for words in sentences for word in words})


def rouge_n_recall(prediction: str, reference: str, n: int) -> float:
    """The recall (0..1) of the package `rouge` 1.0.1: the share of the reference's different runs of n words that the
    prediction has. Words as in `rouge_l`; a run may go on into the next sentence.

    >>> rouge_n_recall("a b c d", "a b. c a", 2)
    0.6666666666666666
    """
    words = (list(chain.from_iterable(split_sentences(text))) for text in (prediction, reference))
    predicted, expected = (list_runs(each, n) for each in words)
    return len(set(predicted) & set(expected)) / len(set(expected)) if expected else 0.0


def list_runs(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n neighbouring words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def split_sentences(text: str) -> list[list[str]]:
    """The words of each sentence, as the package `rouge` splits them."""
    return [" ".join(sentence.split()).split(" ") for sentence in text.split(".") if sentence]


def google_rouge_l(prediction: str, reference: str) -> float:
    """The ROUGE-L F score (0..1) of the package `rouge-score` without stemming.

    Words are runs of a-z and 0-9 in the text's lower case. A repeated word counts each time.

    >>> google_rouge_l("The cat sat.", "the cat")
    0.8
    """
    predicted, expected = (re.findall(r"[a-z0-9]+", text.lower()) for text in (prediction, reference))
    common = lcs_length(expected, predicted)
    if not common:
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)
