"""ZeroSCROLLS' scores of one prediction, 0 to 1 (its paper, section 3, and metrics/ of the hub's tau/zero_scrolls).

kvpress has none: the test split's answers are not public. Of several right answers the best counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import combinations
from typing import Any

from evals.metrics import qa_f1

Score = Callable[[str, str], float]
ROUGES = ("rouge1", "rouge2", "rougeL")


def score_rouge(prediction: str, references: Sequence[str]) -> dict[str, float]:
    """The geometric mean of ROUGE-1, 2 and L with stemming, and the three. The benchmark's own table takes the
    geometric mean of the three means instead, which is a little higher."""
    each = [rouge_scorer().score(reference, prediction) for reference in references]
    best = {name: max(float(scores[name].fmeasure) for scores in each) for name in ROUGES}
    product = best["rouge1"] * best["rouge2"] * best["rougeL"]
    return {"rouge": product ** (1 / 3), **best}


@lru_cache
def rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # half a second, and needed only here

    return RougeScorer(ROUGES, use_stemmer=True)


def score_letter(prediction: str, reference: str) -> float:
    """quality: 1 if the first of A, B, C, D that stands by itself is the right one.

    >>> score_letter("I think (B), not A", "(B) Oslo")
    1.0
    """
    letters = [re.search(r"\b[A-D]\b", text) for text in (prediction, reference)]
    return float(all(letters) and letters[0][0] == letters[1][0])  # type: ignore[index]


def score_percentage(prediction: str, reference: str) -> float:
    """space_digest: 1 for the right share, half of that for every ten points beside it; 0 without a number with "%".

    >>> score_percentage("About 60% of them", "70%")
    0.5
    """
    found = [re.search(r"(\d+\.?\d*)%", text) for text in (prediction, reference)]
    if not all(found):
        return 0.0
    shares = [float(each[1]) for each in found if each]
    return float(0.5 ** (abs(shares[0] - shares[1]) / 10))


def score_order(prediction: str, reference: str) -> float:
    """book_sum_sort: the share of the pairs of parts that are in the right order; 0 if a part is missing or twice.

    >>> score_order("2, 1, 3", "1, 2, 3")
    0.6666666666666666
    """
    given, expected = ([int(digits) for digits in re.findall(r"\d+", text)] for text in (prediction, reference))
    if sorted(given) != sorted(expected) or len(set(expected)) < 2:
        return 0.0
    pairs = list(combinations(expected, 2))
    return sum(given.index(first) < given.index(second) for first, second in pairs) / len(pairs)


def best(name: str, score: Score) -> Callable[[str, Sequence[str]], dict[str, float]]:
    return lambda prediction, references: {name: max(score(prediction, reference) for reference in references)}


SCORES: Mapping[str, Callable[[str, Sequence[str]], dict[str, float]]] = {
    "rouge": score_rouge,
    "f1": best("f1", qa_f1),
    "accuracy": best("accuracy", score_letter),
    "exp_similarity": best("exp_similarity", score_percentage),
    "concordance": best("concordance", score_order),
}
