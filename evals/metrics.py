"""Scores of one prediction, each in 0..1: what the benchmarks' own programs compute, one function a metric.

LongBench's are those of its metrics.py (THUDM/LongBench 2e00731) to the last bit, oddities included.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

from evals.rouge import TOO_DEEP, rouge_l
from evals.rows import is_blank

CHINESE_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣"
    "､、〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)


def exact_match(prediction: str, reference: str) -> float:
    """1 if both are the same but for blanks at the ends.

    >>> exact_match(" 42\\n", "42")
    1.0
    """
    return float(prediction.strip() == reference.strip())


def string_match_all(prediction: str, references: Sequence[str]) -> float:
    """Share of the references found in the prediction, as lower-case substrings ("cap" is found in "landscape").

    A blank reference is never found: as a substring it would be in every prediction.

    >>> string_match_all("it is 7 and NINE", ["nine", "seven"])
    0.5
    """
    return sum(contains(prediction, reference) for reference in references) / len(references)


def string_match_any(prediction: str, references: Sequence[str]) -> float:
    """1 if any reference is found in the prediction (RULER's "string_match_part"), a blank one never.

    >>> string_match_any("In Paris, I think", ["Paris", "Paris, France"])
    1.0
    """
    return float(any(contains(prediction, reference) for reference in references))


def contains(prediction: str, reference: str) -> bool:
    return not is_blank(reference) and reference.lower() in prediction.lower()


def answer_f1(prediction: str, reference: str) -> float:
    """F1 of the words both have, for short answers of any kind: the right answer always scores 1.

    `qa_f1` deletes all ASCII punctuation and the words a, an, the: of the answers "A", "-" and "The" nothing is left,
    and "C++" equals "C". Here words are split at blanks, and case and typographic variants do not count. Punctuation
    is cut from the ends of a word only, signs such as + - # % stay. A word of punctuation alone stays as it is. The
    articles are dropped, except where the reference has no other word; then the prediction keeps its own too.

    >>> answer_f1("The answer is B.", "B"), answer_f1("A", "A"), answer_f1("C", "C++")
    (0.5, 1.0, 0.0)
    """
    predicted, expected = plain_words(prediction), plain_words(reference)
    if any(word not in ARTICLES for word in expected):
        predicted, expected = ([word for word in words if word not in ARTICLES] for words in (predicted, expected))
    return bag_f1(predicted, expected)


ARTICLES = ("a", "an", "the")
OPENING = "\"'`([{*_“”‘«「『（"
CLOSING = ".,;:!?\"'`)]}*_。、，；：！？“”’»」』）"
TYPOGRAPHY = {ord(sign): "-" for sign in "\u2010\u2011\u2012\u2013\u2014\u2212"} | {
    ord("\u2018"): "'",
    ord("\u2019"): "'",
}


def plain_words(text: str) -> list[str]:
    """Words in Unicode's compatibility form (NFKC) and folded case, dashes and quotes made plain, format characters
    left out, without the punctuation at their ends."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold()).translate(TYPOGRAPHY)
    visible = "".join(letter for letter in plain if unicodedata.category(letter) != "Cf")
    return [word.lstrip(OPENING).rstrip(CLOSING) or word for word in visible.split()]


def qa_f1(prediction: str, reference: str) -> float:
    """F1 of the words both have: lower case, without ASCII punctuation and without a, an, the.

    >>> round(qa_f1("The answer is Paris.", "Paris"), 2)
    0.5
    """
    return bag_f1(english_words(prediction), english_words(reference))


def english_words(text: str) -> list[str]:
    bare = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def qa_f1_zh(prediction: str, reference: str) -> float:
    """F1 of the words that jieba cuts, without punctuation.

    >>> qa_f1_zh("“北京”", "北京")
    1.0
    """
    return bag_f1(chinese_words(prediction), chinese_words(reference))


def chinese_words(text: str) -> list[str]:
    dropped = string.punctuation + CHINESE_PUNCTUATION
    words = ("".join(letter for letter in word.lower() if letter not in dropped) for word in segment(text))
    return [bare for word in words if (bare := "".join(word.split()))]


def segment(text: str) -> list[str]:
    return list(segmenter().cut(text, cut_all=False))


@lru_cache
def segmenter() -> Any:
    """jieba, its dictionary read in a second; its own set-up would write and trust a cache in the temp folder."""
    import jieba  # heavy, and needed only for Chinese

    tokenizer = jieba.Tokenizer()
    tokenizer.FREQ, tokenizer.total = tokenizer.gen_pfdict(tokenizer.get_dict_file())
    tokenizer.initialized = True
    return tokenizer


def bag_f1(predicted: Sequence[str], expected: Sequence[str]) -> float:
    """F1 of two bags of words; 0 if they share none, so also if both are empty.

    >>> bag_f1(["a", "a", "b"], ["a", "c"])
    0.4
    """
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:
        return 0.0
    precision = 1.0 * common / len(predicted)
    recall = 1.0 * common / len(expected)
    return (2 * precision * recall) / (precision + recall)


def rouge_l_zh(prediction: str, reference: str, too_deep: int | None = TOO_DEEP - 1) -> float:
    """LongBench's ROUGE-L on the words that jieba cuts (one frame deeper in its stack).

    >>> round(rouge_l_zh("会议讨论了教育。", "会议讨论了教育。"), 6)
    1.0
    """
    return rouge_l(" ".join(segment(prediction)), " ".join(segment(reference)), too_deep)


def classification(prediction: str, reference: str, classes: Sequence[str]) -> float:
    """1 / (classes named in the prediction) if the right one is among them, else 0.

    Classes inside the right one's name do not count, but LongBench removes them from the list it walks through, so that
    the next one is skipped: with "foo" and "foo bar" inside "foo bar baz", one of them stays.

    >>> classification("foo bar baz", "foo bar baz", ["foo", "foo bar", "foo bar baz"])
    0.5
    """
    named = [name for name in classes if name in prediction]
    for name in named:
        if name in reference and name != reference:
            named.remove(name)  # while walking through it: that is how it behaves
    return 1.0 / len(named) if reference in named else 0.0


def count(prediction: str, reference: str) -> float:
    """Share of the numbers in the prediction that are the right one.

    >>> count("5 or 6", "5")
    0.5
    """
    numbers = re.findall(r"\d+", prediction)
    return numbers.count(str(reference)) / len(numbers) if numbers else 0.0


def retrieval(prediction: str, reference: str, pattern: str = r"Paragraph (\d+)") -> float:
    """The same for the number in "Paragraph 5".

    >>> retrieval("Paragraph 5, not 6", "Paragraph 5")
    0.5
    """
    return count(prediction, re.findall(pattern, reference)[0])


def retrieval_zh(prediction: str, reference: str) -> float:
    """The same for the number in "段落5".

    >>> retrieval_zh("段落5", "段落5")
    1.0
    """
    return retrieval(prediction, reference, r"段落(\d+)")


def edit_similarity(prediction: str, reference: str) -> float:
    """Likeness of two texts, blanks at their ends apart: twice the letters that match in order, by all their letters.

    It is difflib's ratio, as in `code_similarity`, of the whole texts and not rounded.

    >>> edit_similarity("return a+b", " return a + b")
    0.9090909090909091
    """
    return SequenceMatcher(None, prediction.strip(), reference.strip(), autojunk=False).ratio()


def code_similarity(prediction: str, reference: str) -> float:
    """Likeness, in whole per cent, of the first line that has no backtick, "#" or "//" (a blank line has none).

    fuzzywuzzy's `ratio` with Python's difflib. Where python-Levenshtein is installed fuzzywuzzy takes that, and gives
    other numbers (lcc +2, repobench-p +3 points on the same predictions), so difflib is called directly.

    >>> code_similarity("# sum\\nreturn a+b", "return a + b")
    0.91
    """
    lines = prediction.lstrip("\n").split("\n")
    line = next((line for line in lines if "`" not in line and "#" not in line and "//" not in line), "")
    if line == reference:
        return 1.0
    if not line or not reference:
        return 0.0
    return round(100 * SequenceMatcher(None, line, reference).ratio()) / 100
