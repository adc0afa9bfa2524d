"""The metrics: their worked examples, brute force, the packages they stand for, any Unicode."""

from __future__ import annotations

import doctest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import evals.metrics
import evals.rouge
import evals.rows
import evals.ruler.split
from evals.jsonl import METRICS
from evals.rouge import TOO_DEEP, google_rouge_l, lcs_length, lcs_words, match_rows, rouge_l

texts = st.text(max_size=60) | st.text(alphabet="ab .\n", max_size=60)
word_lists = st.lists(st.sampled_from("abcde"), max_size=12)


@pytest.mark.parametrize(
    "module", [evals.metrics, evals.rouge, evals.rows, evals.ruler.split], ids=lambda module: module.__name__
)
def test_worked_examples(module: object) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_metric_has_a_worked_example() -> None:
    for name in METRICS:
        function = getattr(evals.metrics, name, None) or getattr(evals.rouge, name)
        assert ">>>" in function.__doc__, name


def table(first: list[str], second: list[str]) -> list[list[int]]:
    rows = [[0] * (len(second) + 1)]
    for word in first:
        row = [0]
        for j, other in enumerate(second):
            row.append(rows[-1][j] + 1 if word == other else max(rows[-1][j + 1], row[j]))
        rows.append(row)
    return rows


@given(word_lists, word_lists)
@settings(max_examples=300, deadline=None)
def test_bit_rows_are_the_table_of_lcs(first: list[str], second: list[str]) -> None:
    expected = table(first, second)
    assert lcs_length(first, second) == expected[-1][-1]
    for row, bits in zip(expected, match_rows(first, second), strict=True):
        assert [row[j + 1] - row[j] for j in range(len(second))] == [1 - (bits >> j & 1) for j in range(len(second))]


@given(word_lists, word_lists)
@settings(max_examples=300, deadline=None)
def test_lcs_words_walk_the_table_as_the_package_does(first: list[str], second: list[str]) -> None:
    lengths = table(first, second)
    words, steps = set(), 0
    i, j = len(first), len(second)
    while i > 0 and j > 0:
        steps += 1
        if first[i - 1] == second[j - 1]:
            words.add(first[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    assert lcs_words(first, second) == (words, steps)


@given(texts, texts)
@settings(max_examples=200, deadline=None)
def test_rouge_l_is_that_of_the_package(prediction: str, reference: str) -> None:
    rouge = pytest.importorskip("rouge", reason="rouge 1.0.1 is not a dependency: LongBench's score without it is ours")
    try:
        expected = rouge.Rouge().get_scores([prediction], [reference], avg=True)["rouge-l"]["f"]
    except ValueError:
        expected = 0.0
    assert rouge_l(prediction, reference) == expected


@given(texts, texts)
@settings(max_examples=200, deadline=None)
def test_google_rouge_l_is_that_of_the_package(prediction: str, reference: str) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    expected = RougeScorer(["rougeL"]).score(reference, prediction)["rougeL"].fmeasure
    assert google_rouge_l(prediction, reference) == pytest.approx(expected, abs=1e-15)


def test_recursion_zero_is_an_option() -> None:
    fits, deep = (" ".join(f"w{i}" for i in range(length)) for length in (TOO_DEEP - 1, TOO_DEEP))
    assert rouge_l(fits, fits) == pytest.approx(1)
    assert rouge_l(deep, deep) == 0.0
    assert rouge_l(deep, deep, too_deep=None) == pytest.approx(1)


def test_the_chinese_rouge_overflows_one_word_earlier() -> None:
    """LongBench calls it one frame deeper: at 990 words, where the English one does at 991."""
    fits, deep = (" ".join(f"w{i}" for i in range(length)) for length in (989, 990))
    assert evals.metrics.rouge_l_zh(fits, fits) == pytest.approx(1)
    assert evals.metrics.rouge_l_zh(deep, deep) == 0.0
    assert rouge_l(deep, deep) == pytest.approx(1)
    assert rouge_l(f"{deep} w990", f"{deep} w990") == 0.0


def test_blanks_between_chinese_words_are_no_words() -> None:
    assert evals.metrics.qa_f1_zh("北京 上海\n广州", "北京上海广州") == 1.0
    assert evals.metrics.chinese_words("北京  上海 。\n广州") == ["北京", "上海", "广州"]


@pytest.mark.parametrize("name", METRICS)
@given(prediction=texts, references=st.lists(texts, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_any_text_gives_a_score_from_0_to_1(name: str, prediction: str, references: list[str]) -> None:
    assert 0.0 <= METRICS[name](prediction, references) <= 1.0


@pytest.mark.parametrize("name", METRICS)
def test_long_texts_are_scored_quickly(name: str) -> None:
    text = "word and another " * 20_000
    assert METRICS[name](text, ["short"]) >= 0.0


@pytest.mark.parametrize("blank", ["", " ", "\n", "\u200b"])
def test_a_blank_reference_is_found_nowhere(blank: str) -> None:
    assert evals.metrics.string_match_all("wrong words\n\u200b", [blank]) == 0.0
    assert evals.metrics.string_match_all("in Paris", ["Paris", blank]) == 0.5
    assert evals.metrics.string_match_any("wrong words\n\u200b", [blank, "Paris"]) == 0.0


def test_code_similarity_is_difflibs() -> None:
    # python-Levenshtein and rapidfuzz say 0.29 for this pair
    prediction = "   time_return = time_add(row[4], row[5])"
    assert evals.metrics.code_similarity(prediction, "                 ORDER BY sdate, stime ''', (i,))") == 0.24
    assert evals.metrics.code_similarity("", "") == 1.0
    assert evals.metrics.code_similarity("# only a comment", "x") == 0.0
