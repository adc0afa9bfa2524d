"""InfiniteBench's scores of one prediction, 0 to 1, as kvpress 0.5.5 computes them (from compute_scores.py).

They are given answers of the types that the benchmark's own program has: numbers where numbers are compared, and
[text of the option, its letter] where there are choices. kvpress 0.5.5 itself passes the hub's strings, so that there
code_run and math_calc are always 0 and math_find and code_debug end in an error; its later versions convert them.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evals.metrics import CHINESE_PUNCTUATION, bag_f1, qa_f1

NUMBER = r"\d+\.\d+|\d+"


def blank_out(text: str, signs: Sequence[str]) -> str:
    """The text with blanks in place of the signs."""
    for sign in signs:
        text = text.replace(sign, " ")
    return text


def score_retrieval(prediction: str, answer: Sequence[str]) -> float:
    """1 if the value is one of the prediction's words."""
    return float(answer[0] in blank_out(prediction, "\n:\"'.,?!{}").split())


def score_first_number(prediction: str, answer: Sequence[str]) -> float:
    """1 if the prediction's first run of digits is the answer."""
    digits = re.search("[0-9]+", prediction)
    return float(digits is not None and digits[0] == answer[0])


def score_last_word(prediction: str, answer: Sequence[int]) -> float:
    """1 if the prediction's last word is the number."""
    words = blank_out(prediction, "\n.`'\":").split()
    try:
        return float(bool(words) and int(words[-1]) == answer[0])
    except ValueError:
        return 0.0


def score_first_value(prediction: str, answer: Sequence[float]) -> float:
    """1 if the prediction's first number, its sign apart, is the answer. Where the answer is whole and the number has
    a point kvpress ends in an error; here that is 0."""
    number = re.search(NUMBER, prediction)
    if number is None or (isinstance(answer[0], int) and "." in number[0]):
        return 0.0
    return float(type(answer[0])(number[0]) == answer[0])


def score_sequence(prediction: str, answer: Sequence[int]) -> float:
    """The share of the values that are right before the first wrong one, signs apart."""
    right = 0
    for digits, expected in zip(re.findall("[0-9]+", prediction), answer, strict=False):
        if (digits.lstrip("0") or "0") != str(expected):  # not int(digits), which has a longest number
            break
        right += 1
    return right / len(answer)


def score_name(prediction: str, answer: Sequence[str]) -> float:
    """1 if any of the names is in the prediction, whatever the case."""
    return float(any(name.upper() in prediction.strip().upper() for name in answer))


def score_words(prediction: str, answer: Sequence[str]) -> float:
    """F1 of the words, of the answer that gives most."""
    return max(qa_f1(prediction, each) for each in answer)


def score_letters(prediction: str, answer: Sequence[str]) -> float:
    """F1 of the Chinese characters, of the answer that gives most."""
    return max(bag_f1(bare_letters(prediction), bare_letters(each)) for each in answer)


def bare_letters(text: str) -> list[str]:
    dropped = string.punctuation + CHINESE_PUNCTUATION
    kept = "".join(letter for letter in text.lower() if letter not in dropped)
    return list("".join(kept.split()))


def score_function(prediction: str, answer: Sequence[str]) -> float:
    """code_debug: 1 if the last capital A to J of a line is the letter, or if the prediction, or what follows "is:" in
    it, begins with the letter or the function's name. answer: (the name, its letter)."""
    name, letter = answer
    prediction = prediction.strip()
    if last_capital(prediction, "A-J") == letter:
        return 1.0
    text = join_blanks(blank_out(prediction, ["\n", "`", "'", '"', "-", "*", "Option", "option"]))
    if text.startswith((letter, name)):
        return 1.0
    return float(follows(text, ("answer is:", "is:", "answer:", "correct option is:"), (letter, name)) or False)


def score_choice(prediction: str, answer: Sequence[str]) -> float:
    """longbook_choice_eng: the last capital A to D of a line, else the first letter, else what follows "answer is" and
    the like, else the first of the words A, B, C, D. answer: (the option's text, its letter)."""
    prediction = prediction.strip()
    if not prediction:
        return 0.0
    if last_capital(prediction, "A-D") in answer:
        return 1.0
    if prediction[0] in "ABCD":
        return float(prediction[0] in answer)
    if prediction in answer:
        return 1.0
    text = join_blanks(blank_out(prediction, "\n\"'.,?!{}"))
    found = follows(text, ("answer is:", "answer:", "answer is", "option is"), answer)
    if found is not None:
        return float(found)
    word = next((word for word in text.split() if word in "ABCD"), None)
    return float(word in answer)


def last_capital(text: str, letters: str) -> str | None:
    """The last of the letters that stands by itself in the first line that has one."""
    found = re.search(rf"\b[{letters}]\b(?!.*\b[{letters}]\b)", text)
    return found[0] if found else None


def join_blanks(text: str) -> str:
    """Runs of blanks as one, other white space as it is."""
    return re.sub(" {2,}", " ", text)


def follows(text: str, cues: Sequence[str], expected: Sequence[str]) -> bool | None:
    """Whether one of the expected texts stands one sign behind the first cue of the list that is in the text; None: no
    cue is."""
    for cue in cues:
        _, found, rest = text.partition(cue)
        if found:
            return rest[1:].startswith(tuple(expected)) if rest else False
    return None


SCORES: Mapping[str, Callable[[str, Sequence[Any]], float]] = {
    "passkey": score_first_number,
    "number_string": score_first_number,
    "kv_retrieval": score_retrieval,
    "longdialogue_qa_eng": score_name,
    "longbook_qa_eng": score_words,
    "longbook_choice_eng": score_choice,
    "longbook_qa_chn": score_letters,
    "code_run": score_last_word,
    "code_debug": score_function,
    "math_find": score_first_value,
    "math_calc": score_sequence,
}
