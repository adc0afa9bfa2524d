"""LooGLE as a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals import hub
from evals.loogle.score import parse_literal, score_answer, score_cloze
from evals.published import Entry, Prompt, Published
from evals.rows import Row, check_columns, check_references, find_tables
from evals.task import Sample

HUB = "bigainlco/LooGLE"

# kvpress 0.5.5, evaluation/benchmarks/loogle; spelling is original ("Organiocation")
LONG_TEXTS = "Please answer the question based on the long texts below. \n{input}"
CLOZES = (
    "Please fill in the clozes based on the given long texts below. Each of the placeholder '<mask-n>' in the question "
    "could be an entity of Person, Location or Organiocation. The same masks represent the same entity. Output a json "
    "format answer, for example: {{'<mask-0>': 'Bob', '<mask-1>': 'Gorrosion Magazine','<mask-2>': 'Bethel Horizon'}}\n"
    "{input}"
)
TEXTS: Mapping[str, tuple[str, str, str]] = {
    "shortdep_qa": (LONG_TEXTS, "\nQuestion: {Q}\n", "Answer: "),
    "longdep_qa": (LONG_TEXTS, "\nQuestion: {Q}\n", "Answer: "),
    "shortdep_cloze": (CLOZES, "\n Question: {Q} What are the masked entities?\n", "Answer:"),
    "longdep_summarization": ("Please generate a summary of the below paper. \n{input}", "{Q}\n", "Summarization: "),
}
"""Task -> the context, the question, the beginning of the answer."""

CLOZE, SUMMARY = "shortdep_cloze", "longdep_summarization"


def rate_answer(prediction: str, sample: Sample) -> dict[str, float]:
    return score_answer(prediction, sample.references[0])


def rate_cloze(prediction: str, sample: Sample) -> dict[str, float]:
    return score_cloze(prediction, sample.extra["masks"])


CATALOG = {
    "shortdep_qa": Entry("questions about one place of a long document", 300, rate_answer),
    "longdep_qa": Entry("questions about many places of a long document", 500, rate_answer),
    CLOZE: Entry("masked names in a summary of a part of a long document", 50, rate_cloze),
    SUMMARY: Entry("summaries of scientific articles", 500, rate_answer),
}


class LooGLE(Published):
    """
    data    folder with shortdep_qa.jsonl, ... (or .json, .parquet), or the name of the data set on the hub. A row has
            "context", "question" and "answer", or, as in LooGLE's first release, "input", "qa_pairs" and "output"
    tasks, max_length, question_aware: evals/published.py
    """

    def __init__(
        self,
        data: str = HUB,
        tasks: str | Sequence[str] = "available",
        max_length: int | str = "auto",
        question_aware: bool = False,
    ) -> None:
        super().__init__("loogle", "LooGLE", CATALOG, {}, data, tasks, max_length, question_aware)

    def find(self, task: str) -> Sequence[Any]:
        return find_tables(self.folder, task) or (find_tables(self.folder, "summarization") if task == SUMMARY else [])

    def fetch(self, task: str) -> list[Row]:
        return hub.load_split(self.data, "summarization" if task == SUMMARY else task, "test", self.columns)

    def ask(self, task: str, place: str, row: Mapping[str, Any]) -> Iterator[Prompt]:
        head, question, cue = TEXTS[task]
        context, pairs = read_pairs(task, place, row)
        for asked, answer in pairs:
            masks = read_masks(answer, place) if task == CLOZE else {}
            references = tuple(masks.values()) if masks else (str(answer),)
            yield Prompt(
                context=head.format(input=context),
                question=question.format(Q=asked),
                answer_prefix=cue,
                references=check_references(references, "answer", place),
                extra={"masks": masks, "document": row.get("doc_id", row.get("title"))},
            )


def read_pairs(task: str, place: str, row: Mapping[str, Any]) -> tuple[str, list[tuple[str, Any]]]:
    """A document, and the questions about it with their answers, of either release."""
    if "input" not in row:
        check_columns(row, place, {"context": str, "question": str})
        if "answer" not in row:
            check_columns(row, place, {"answer": str})
        return row["context"], [(row["question"], row["answer"])]
    if task == SUMMARY:
        check_columns(row, place, {"input": str, "output": str})
        return row["input"], [("", row["output"])]
    check_columns(row, place, {"input": str})
    pairs = row.get("qa_pairs")
    if isinstance(pairs, str):
        pairs = [] if pairs.lower() == "none" else read_literal(pairs, place)
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) and {"Q", "A"} <= set(pair) for pair in pairs):
        raise ValueError(f"{place}: 'qa_pairs' must be a list of objects with 'Q' and 'A'")
    return row["input"], [(str(pair["Q"]), pair["A"]) for pair in pairs]


def read_literal(text: str, place: str) -> Any:
    """The release has its lists as the text of a Python list."""
    try:
        return parse_literal(text)
    except ValueError as error:
        raise ValueError(f"{place}: 'qa_pairs' is not the text of a list: {error}") from error


def read_masks(answer: Any, place: str) -> dict[str, str]:
    """Mask -> entity. A list has the masks' entities in their order."""
    masks = {f"<mask-{i}>": entity for i, entity in enumerate(answer)} if isinstance(answer, list) else answer
    if not isinstance(masks, dict) or not masks or not all(isinstance(entity, str) for entity in masks.values()):
        raise ValueError(f"{place}: the answer must be a list of entities, or an object of them by mask")
    return masks
