"""LooGLE's scores of one prediction, 0 to 1, as kvpress 0.5.5 computes them, but for two that no repeat would give.

kvpress has METEOR too, on sets of words whose order, and so the score, changes with every process; and BERTScore, which
needs a model of 1.4 GB. They are left out. ROUGE is 0 in kvpress where a text is too long for the package's recursion;
here it is the true value.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

from evals.rouge import list_runs, rouge_l_recall, rouge_n_recall


def score_answer(prediction: str, reference: str) -> dict[str, float]:
    """Recall of ROUGE-L, 1 and 2 (package `rouge`), and the precision of single words and runs of four with BLEU's
    penalty for short answers."""
    return {
        "rouge_l": rouge_l_recall(prediction, reference),
        "rouge_1": rouge_n_recall(prediction, reference, 1),
        "rouge_2": rouge_n_recall(prediction, reference, 2),
        "bleu_1": bleu(prediction, reference, 1),
        "bleu_4": bleu(prediction, reference, 4),
    }


def bleu(prediction: str, reference: str, n: int) -> float:
    """The share of the prediction's runs of n words that the reference has too, each as often as there, times BLEU's
    brevity penalty. It is nltk's sentence_bleu with all its weight on one length of runs.

    >>> bleu("a b", "a b c d", 1) == math.exp(-1)
    True
    """
    predicted, expected = prediction.split(), reference.split()
    runs, known = Counter(list_runs(predicted, n)), Counter(list_runs(expected, n))
    common = sum((runs & known).values())
    if not common:
        return 0.0
    penalty = 1.0 if len(predicted) > len(expected) else math.exp(1 - len(expected) / len(predicted))
    return penalty * common / sum(runs.values())


def score_cloze(prediction: str, masks: Mapping[str, str]) -> dict[str, float]:
    """The share of the masks whose entity is named exactly, and of those that share a word with it.

    The prediction is read as a Python literal, a dictionary; whatever else it is scores 0.
    """
    named = read_dictionary(prediction)
    exact = sum(named.get(mask) == entity for mask, entity in masks.items())
    given = {mask: named[mask] for mask in masks if mask in named}
    partial = 0
    if all(isinstance(entity, str) for entity in given.values()):
        partial = sum(bool(set(masks[mask].split()) & set(entity.split())) for mask, entity in given.items())
    return {"exact_match": exact / len(masks), "partial_match": partial / len(masks)}


def read_dictionary(text: str) -> dict[Any, Any]:
    try:
        value = parse_literal(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def parse_literal(text: str) -> Any:
    """The value of a text such as "{'a': [1]}", which is read and never run. Raises ValueError for anything else."""
    try:
        with warnings.catch_warnings():  # Python says of some texts that they will be wrong one day
            warnings.simplefilter("ignore", SyntaxWarning)
            return ast.literal_eval(text)
    except (SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise ValueError(str(error)) from error
