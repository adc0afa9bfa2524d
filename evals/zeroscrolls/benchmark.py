"""ZeroSCROLLS as a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from evals import hub
from evals.published import Entry, Prompt, Published
from evals.rows import TABLES, Row, check_references, check_twins, data_files, is_blank, read_member, split_of
from evals.task import Metric, Sample
from evals.zeroscrolls.score import SCORES

HUB = "tau/zero_scrolls"
SPLITS = ("validation", "test")
COLUMNS: Mapping[str, type] = {"id": str, "input": str, "document_end_index": int, "query_end_index": int}


def make_entry(description: str, max_new_tokens: int, metric: str) -> Entry:
    compute = SCORES[metric]

    def score(prediction: str, sample: Sample) -> dict[str, float]:
        return compute(prediction, sample.references)

    rate: Metric = score
    return Entry(description, max_new_tokens, rate)


# answer lengths: kvpress 0.5.5, evaluation/benchmarks/zero_scrolls
CATALOG: Mapping[str, Entry] = {
    "gov_report": make_entry("summaries of government reports", 1024, "rouge"),
    "summ_screen_fd": make_entry("summaries of episodes of television series", 512, "rouge"),
    "qmsum": make_entry("summaries of meetings, by a question", 512, "rouge"),
    "squality": make_entry("summaries of stories, by a question", 512, "rouge"),
    "qasper": make_entry("questions about scientific articles", 128, "f1"),
    "narrative_qa": make_entry("questions about stories and film scripts", 64, "f1"),
    "quality": make_entry("questions with four choices about stories", 10, "accuracy"),
    "musique": make_entry("questions of several steps over Wikipedia paragraphs", 32, "f1"),
    "space_digest": make_entry("the share of positive reviews of a hotel", 36, "exp_similarity"),
    "book_sum_sort": make_entry("the order of a novel's summaries", 256, "concordance"),
}


class ZeroSCROLLS(Published):
    """
    data     folder with gov_report/validation.jsonl, ... (gov_report.zip of the hub, unpacked), or the name of the data
             set on the hub
    split    validation: the rows with answers, about 20 a task; test: refused where a row has no answer
    tasks, max_length, question_aware: evals/published.py
    """

    def __init__(
        self,
        data: str = HUB,
        split: str = "validation",
        tasks: str | Sequence[str] = "available",
        max_length: int | str = "auto",
        question_aware: bool = False,
    ) -> None:
        if split not in SPLITS:
            raise ValueError(f"benchmark.split={split}: choose {' or '.join(SPLITS)}")
        super().__init__("zeroscrolls", "ZeroSCROLLS", CATALOG, COLUMNS, data, tasks, max_length, question_aware)
        self.split = split

    def find(self, task: str) -> Sequence[Path]:
        folder = self.folder / task
        files = [file for file in data_files(folder, TABLES) if split_of(file) == self.split]
        check_twins(files)
        return files

    def fetch(self, task: str) -> list[Row]:
        with ZipFile(hub.download(self.data, f"{task}.zip")) as archive:
            members = [name for name in archive.namelist() if name.rpartition("/")[2] == f"{self.split}.jsonl"]
            if not members:
                raise FileNotFoundError(f"its {task}.zip has no {self.split}.jsonl")
            return read_member(archive, members[0], f"{self.data} {task}.zip", self.columns)

    def load(self, task: str, local: bool) -> list[Row]:
        """Rows of one question, which differ in their answers, become one row with all of them."""
        merged: dict[str, Row] = {}
        for place, row in super().load(task, local):
            output = row.get("output")
            if not isinstance(output, str) or is_blank(output):
                raise ValueError(
                    f"{place} has no answer in 'output': those of the test split are not public; "
                    f"benchmark.split=validation has answers"
                )
            _, first = merged.setdefault(row["id"], (place, {**row, "outputs": []}))
            first["outputs"].append(output)
        return list(merged.values())

    def ask(self, task: str, place: str, row: Mapping[str, Any]) -> Iterator[Prompt]:
        text, document, query = row["input"], row["document_end_index"], row["query_end_index"]
        if not 0 < document <= len(text) or not document <= query <= len(text):
            raise ValueError(
                f"{place}: 'document_end_index' {document} and 'query_end_index' {query} are no places "
                f"in an 'input' of {len(text)} characters"
            )
        yield Prompt(
            context=text[:document],
            question=text[document:query],
            answer_prefix=text[query:].strip(),
            references=check_references(row["outputs"], "output", place),
            extra={"row": row["id"]},
        )

    def facts(self) -> Mapping[str, Any]:
        return {**super().facts(), "split": self.split}
