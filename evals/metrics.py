"""Scores of one prediction, each in 0..1: what the benchmarks' own programs compute, one function a metric."""

from __future__ import annotations

from collections.abc import Sequence


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references found in the prediction, as lower-case substrings ("cap" is found in "landscape").

    >>> string_match_all("it is 7 and NINE", ["nine", "seven"])
    0.5
    """
    text = prediction.lower()
    return sum(reference.lower() in text for reference in references) / len(references)


def string_match_any(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference is found in the prediction (RULER's "string_match_part").

    >>> string_match_any("In Paris, I think", ["Paris", "Paris, France"])
    1.0
    """
    text = prediction.lower()
    return float(any(reference.lower() in text for reference in references))
