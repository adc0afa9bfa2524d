"""LongBench-v2 as a benchmark: one task, or one a level of difficulty, length or domain."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from evals import hub
from evals.published import Entry, Prompt, Published
from evals.rows import TABLES, Row, check_twins, data_files, read_table
from evals.task import Sample

HUB = "THUDM/LongBench-v2"
NAME = "longbench_v2"
GROUPS = ("difficulty", "length", "domain")

# kvpress 0.5.5, evaluation/benchmarks/longbenchv2: the quotation mark in the question is not closed
CONTEXT = "Please read the following text and answer the question below.\n<text>\n{context}\n</text>\n\n"
QUESTION = (
    "What is the correct answer to this question: {question}\nChoices:\n(A) {choice_A}\n(B) {choice_B}\n"
    '(C) {choice_C}\n(D) {choice_D}\n\nFormat your response as follows: "The correct answer is (insert answer here).'
)
COLUMNS: Mapping[str, type] = dict.fromkeys(
    ("context", "question", "choice_A", "choice_B", "choice_C", "choice_D", "answer"), str
)


def kvpress_score(prediction: str, answer: str) -> float:
    """kvpress: 1 if the sentence with the right letter is anywhere in the prediction, its asterisks apart.

    >>> kvpress_score("**The correct answer is (B)**.", "B"), kvpress_score("B", "B")
    (1.0, 0.0)
    """
    bare = prediction.replace("*", "")
    return float(any(f"The correct answer is {letter}" in bare for letter in (f"({answer})", answer)))


def official_score(prediction: str, answer: str) -> float:
    """LongBench-v2's pred.py: 1 if the first letter that the sentence names is right, one in brackets before others.

    >>> official_score("The correct answer is (A). The correct answer is (B).", "B")
    0.0
    """
    bare = prediction.replace("*", "")
    for pattern in (r"The correct answer is \(([A-D])\)", r"The correct answer is ([A-D])"):
        if named := re.search(pattern, bare):
            return float(named[1] == answer)
    return 0.0


def score(prediction: str, sample: Sample) -> Mapping[str, float]:
    (answer,) = sample.references
    return {"kvpress": kvpress_score(prediction, answer), "official": official_score(prediction, answer)}


CATALOG = {NAME: Entry("questions with four choices about long texts of six kinds", 16, score)}


class LongBenchV2(Published):
    """
    data             folder with data.json (or .jsonl, .parquet), that file, or the name of the data set on the hub
    by               difficulty, length or domain: one task for each of their values; null: one task
    max_length, question_aware: evals/published.py
    """

    def __init__(
        self,
        data: str = HUB,
        by: str | None = None,
        max_length: int | str = "auto",
        question_aware: bool = False,
    ) -> None:
        if by is not None and by not in GROUPS:
            raise ValueError(f"benchmark.by={by}: choose {', '.join(GROUPS)} or null")
        columns = COLUMNS if by is None else {**COLUMNS, by: str}
        super().__init__(
            NAME, "LongBench-v2", CATALOG, columns, data, max_length=max_length, question_aware=question_aware
        )
        self.by = by

    def find(self, task: str) -> Sequence[Path]:
        files = [self.folder] if self.folder.is_file() else data_files(self.folder, TABLES)
        check_twins(files)
        return files

    def fetch(self, task: str) -> list[Row]:
        return read_table(hub.download(self.data, "data.json"), self.columns)

    def ask(self, task: str, place: str, row: Mapping[str, Any]) -> Iterator[Prompt]:
        if row["answer"] not in ("A", "B", "C", "D"):
            raise ValueError(f"{place}: 'answer' is {row['answer']!r}, one of A, B, C, D is expected")
        yield Prompt(
            context=CONTEXT.format(context=row["context"]),
            question=QUESTION.format(**row),
            answer_prefix="",
            references=(row["answer"],),
            task=row[self.by].lower().replace(" ", "_") if self.by else "",
            extra={name: row[name] for name in ("_id", *GROUPS) if name in row},
        )

    def facts(self) -> Mapping[str, Any]:
        return {**super().facts(), "by": self.by}
