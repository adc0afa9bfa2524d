"""InfiniteBench as a benchmark."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals import hub
from evals.infinitebench.catalog import CATALOG, Text
from evals.infinitebench.score import SCORES
from evals.published import Entry, Prompt, Published
from evals.rows import Row, check_references, read_table
from evals.task import Metric, Sample

HUB = "xinrongzhang2022/InfiniteBench"
COLUMNS: Mapping[str, type] = {"context": str, "input": str, "answer": list, "options": list}
LETTERS = "ABCD"
NUMBERS = ("code_run", "math_find", "math_calc")
MATH_CUE = "You should answer with only one number, no other words. The largest number of the list is:"


def make_metric(task: str) -> Metric:
    compute = SCORES[task]

    def score(prediction: str, sample: Sample) -> dict[str, float]:
        return {"kvpress": compute(prediction, sample.extra["answer"])}

    return score


ENTRIES = {name: Entry(text.description, text.max_new_tokens, make_metric(name)) for name, text in CATALOG.items()}


class InfiniteBench(Published):
    """
    data    folder with passkey.jsonl, ... (or .json, .parquet), or the name of the data set on the hub
    tasks, max_length, question_aware: evals/published.py. longbook_sum_eng is no task: kvpress has no score for it
    """

    def __init__(
        self,
        data: str = HUB,
        tasks: str | Sequence[str] = "available",
        max_length: int | str = "auto",
        question_aware: bool = False,
    ) -> None:
        super().__init__("infinitebench", "InfiniteBench", ENTRIES, COLUMNS, data, tasks, max_length, question_aware)

    def fetch(self, task: str) -> list[Row]:
        return read_table(hub.download(self.data, f"{task}.jsonl"), self.columns)

    def ask(self, task: str, place: str, row: Mapping[str, Any]) -> Iterator[Prompt]:
        text = CATALOG[task]
        references = check_references([str(answer) for answer in row["answer"]], "answer", place)
        question, answer = row["input"], read_answer(task, references, place)
        if text.options:
            options = check_options(row["options"], references[0], place)
            question += text.options.format(**dict(zip(LETTERS, options, strict=True)))
            letter = LETTERS[options.index(references[0])]
            answer, references = (references[0], letter), (letter,)
        if task == "kv_retrieval":  # it is the beginning of the answer
            question = question.replace("The value associated with the specified key is:", "")
        yield Prompt(
            context=make_context(task, text, row, place),
            question=question,
            answer_prefix=text.cue,
            references=references,
            extra={"answer": answer, "row": row.get("id")},
        )


def make_context(task: str, text: Text, row: Mapping[str, Any], place: str) -> str:
    context, asked = row["context"], row["input"]
    if task == "code_run":
        call = search(r"func_[0-9]+\(-?[0-9]+\)", asked, "call such as func_1(2)", place)
        return text.head.format(context=context, func=call.partition("(")[0])
    if task == "math_find":
        sought = search(r"The .+ of", asked, "'The ... of'", place).removesuffix(" of").lower()
        prefix = f"What is {sought} in the following list?"
        return text.head.format(context=context, prefix=prefix, input=asked).replace(MATH_CUE, "")
    return text.head.format(context=context)


def search(pattern: str, text: str, what: str, place: str) -> str:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"{place}: 'input' has no {what}")
    return found[0]


def read_answer(task: str, references: tuple[str, ...], place: str) -> tuple[Any, ...]:
    """The answers as what they are compared as: numbers in three tasks."""
    if task not in NUMBERS:
        return references
    try:
        return tuple(int(each) if re.fullmatch(r"-?\d+", each) else float(each) for each in references)
    except ValueError as error:
        raise ValueError(f"{place}: 'answer' must hold numbers: {error}") from error


def check_options(options: Sequence[Any], answer: str, place: str) -> list[str]:
    if len(options) != len(LETTERS) or not all(isinstance(option, str) and option for option in options):
        raise ValueError(f"{place}: 'options' must be four texts")
    if answer not in options:
        raise ValueError(f"{place}: 'answer' {answer!r} is none of its 'options'")
    return list(options)
