"""The calibration text of the LU-KV authors (arXiv 2602.08585): one {"context": ..., "questions": [...]} a line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

from evals.rows import check_strings, read_rows
from evals.task import Sample, Task, Tokenizer

VERSION = 1
CUE = "回答："


class Authors:
    """Plain text as they give it to the model: BOS and the context, then a question and the cue; no chat template, no
    newline between them. There are no reference answers: the model's own continuation is measured.

    path    the file; theirs is evaluation/curve_data/novel.jsonl of their later release, one story with 30 questions
    cue     what follows every question
    """

    def __init__(self, path: str, cue: str = CUE, max_new_tokens: int = 64) -> None:
        self.path = Path(path).expanduser()
        self.name = f"authors-{self.path.stem}"
        self.cue, self.max_new_tokens = cue, max_new_tokens

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        """One task; at most `limit` contexts, each with all its questions."""
        samples = []
        for number, row in enumerate(read_rows(self.path, {"context": str, "questions": list})[:limit], start=1):
            place = f"{self.path} line {number}"
            if not row["context"]:
                raise ValueError(f"{place}: 'context' is empty: there is nothing to compress")
            for index, question in enumerate(check_strings(row["questions"], "questions", place)):
                samples.append(self.sample(f"{number}-{index}", row["context"], question + self.cue))
        yield Task("authors", VERSION, f"questions of {self.path.name}", samples, no_score)

    def sample(self, number: str, context: str, question: str) -> Sample:
        return Sample(
            id=f"authors-{number}",
            task="authors",
            context=context,
            question=question,
            references=(),
            max_new_tokens=self.max_new_tokens,
            chat=False,
            layout="plain",
        )

    def facts(self) -> Mapping[str, Any]:
        """The file by its content, not by where it lies."""
        known = self.path.is_file()
        return {
            "benchmark": self.name,
            "sha256": sha256(self.path.read_bytes()).hexdigest()[:16] if known else None,
            "cue": self.cue,
        }


def no_score(prediction: str, sample: Sample) -> dict[str, float]:
    raise ValueError("calibration=authors has no answers to score: it is for job=calibrate only")
