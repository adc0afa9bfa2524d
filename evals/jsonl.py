"""A user's own benchmark: one {"context": ..., "question": ..., "answers": [...]} a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from evals import metrics
from evals.rouge import google_rouge_l, rouge_l
from evals.rows import check_columns, check_references, read_rows
from evals.task import Sample, Task, Tokenizer, show_question
from lukv.names import suggest_nearest

VERSION = 2


def best(metric: Callable[[str, str], float]) -> Callable[[str, Sequence[str]], float]:
    return lambda prediction, references: max(metric(prediction, reference) for reference in references)


METRICS: Mapping[str, Callable[[str, Sequence[str]], float]] = {
    "answer_f1": best(metrics.answer_f1),
    "exact_match": best(metrics.exact_match),
    "qa_f1": best(metrics.qa_f1),
    "qa_f1_zh": best(metrics.qa_f1_zh),
    "rouge_l": best(partial(rouge_l, too_deep=None)),
    "rouge_l_zh": best(partial(metrics.rouge_l_zh, too_deep=None)),
    "google_rouge_l": best(google_rouge_l),
    "code_similarity": best(metrics.code_similarity),
    "string_match_all": metrics.string_match_all,
    "string_match_any": metrics.string_match_any,
}
"""Over several references the best counts, except in string_match_all: the share that is found. The two ROUGE-L have no
zero for long texts here, which LongBench's own have."""


class Jsonl:
    """Questions of the user's own, one JSON object a line; equal contexts are compressed once by the harness.

    data             file with "context", "question" (strings) and "answers" (a list of strings) on every line; also
                     "answer_prefix", "max_new_tokens", "task" (several tasks in one file) and "id" if wanted
    metric           a name of METRICS
    max_new_tokens   where the line has none
    chat             put the model's chat template around it
    question_aware   the question is part of what is compressed
    """

    def __init__(
        self,
        data: str,
        metric: str = "answer_f1",
        max_new_tokens: int = 64,
        chat: bool = True,
        question_aware: bool = False,
    ) -> None:
        if metric not in METRICS:
            near = suggest_nearest(metric, METRICS)
            raise ValueError(f"benchmark.metric={metric}: no such metric.{near} There are: {', '.join(METRICS)}")
        if max_new_tokens < 1:
            raise ValueError(f"benchmark.max_new_tokens={max_new_tokens} must be at least 1")
        self.path = Path(data).expanduser()
        self.name = f"jsonl-{self.path.stem}"
        self.metric = metric
        self.max_new_tokens = max_new_tokens
        self.chat, self.question_aware = chat, question_aware

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        rows = read_rows(self.path, {"context": str, "question": str, "answers": list})
        samples: dict[str, list[Sample]] = {}
        for number, row in enumerate(rows, start=1):
            sample = self.sample(row, number)
            samples.setdefault(sample.task, []).append(sample)
        compute = METRICS[self.metric]

        def score(prediction: str, sample: Sample) -> dict[str, float]:
            return {self.metric: compute(prediction, sample.references)}

        for name, own in samples.items():
            yield Task(name, VERSION, f"questions of {self.path.name}", own[:limit], score)

    def sample(self, row: Mapping[str, Any], number: int) -> Sample:
        place = f"{self.path} line {number}"
        optional = {"answer_prefix": str, "max_new_tokens": int, "task": str}
        check_columns(row, place, {name: kind for name, kind in optional.items() if name in row})
        tokens = row.get("max_new_tokens", self.max_new_tokens)
        if tokens < 1:
            raise ValueError(f"{place}: 'max_new_tokens' is {tokens}, it must be at least 1")
        task = row.get("task", self.path.stem)
        sample = Sample(
            id=f"{task}-{row.get('id', number)}",
            task=task,
            context=row["context"],
            question=row["question"],
            answer_prefix=row.get("answer_prefix", ""),
            references=self.references(row["answers"], place),
            max_new_tokens=tokens,
            chat=self.chat,
            extra={"line": number},
        )
        if self.question_aware:
            sample = show_question(sample)
        if not sample.context:
            raise ValueError(f"{place}: 'context' is empty: there is nothing to compress")
        return sample

    def references(self, answers: Any, place: str) -> tuple[str, ...]:
        """The right answers. Raises ValueError for one that the metric would score 0 if the model gave it.

        qa_f1 deletes the article "A" and the sign "-"; google_rouge_l knows no letter but a to z.
        """
        references = check_references(answers, "answers", place)
        for reference in references:
            if METRICS[self.metric](reference, [reference]) == 0:
                raise ValueError(
                    f"{place}: benchmark.metric={self.metric} scores the right answer {shorten(reference)!r} 0: "
                    f"it leaves nothing of it; use benchmark.metric=answer_f1 or exact_match"
                )
        return references

    def facts(self) -> Mapping[str, Any]:
        return {
            "benchmark": "jsonl",
            "data": str(self.path),
            "sha256": sha256(self.path.read_bytes()).hexdigest()[:16] if self.path.is_file() else None,
            "metric": self.metric,
            "question_aware": self.question_aware,
        }


def shorten(text: str, most: int = 40) -> str:
    return text if len(text) <= most else f"{text[:most]}..."
