"""Calibration without questions: the model is asked to repeat the context (the idea of KVzip, arXiv 2505.23416).

Any benchmark's contexts, none of its questions: what is measured is what reading the context back attends to, so that
a table or a probe does not know any task. Long contexts are repeated in chunks, each named by the words before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from evals.task import Benchmark, Sample, Task, Tokenizer

VERSION = 1
NAMED_BY = 8  # tokens before a chunk that its question quotes


class Reconstruct:
    """`source`: the benchmark whose contexts are repeated. `chunk`: tokens of context a question asks for."""

    def __init__(self, source: Benchmark, chunk: int = 512) -> None:
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1 token")
        self.source, self.chunk = source, chunk
        self.name = f"reconstruct-{source.name}"

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        for task in self.source.tasks(tokenizer, limit):
            contexts = {(s.context, s.chat): s for s in task.samples}
            samples = [each for s in contexts.values() for each in self.questions(s, tokenizer)]
            yield Task(task.name, VERSION, f"repeat the contexts of {task.name}", samples, verbatim)

    def questions(self, sample: Sample, tokenizer: Tokenizer) -> Iterator[Sample]:
        ids = tokenizer.encode(sample.context, add_special_tokens=False)
        for start in range(0, len(ids), self.chunk):
            before = tokenizer.decode(ids[max(0, start - NAMED_BY) : start])
            which = f" starting with `{before}`" if start else ""
            text = tokenizer.decode(ids[start : start + self.chunk])
            yield replace(
                sample,
                id=f"{sample.id}-{start}",
                question=f"\n\nRepeat the previous context{which}:",
                answer_prefix="",
                references=(text,),
                max_new_tokens=self.chunk,
                stop=(),
                min_new_tokens=0,
            )

    def facts(self) -> Mapping[str, Any]:
        return {**self.source.facts(), "benchmark": self.name, "chunk": self.chunk}


def verbatim(prediction: str, sample: Sample) -> dict[str, float]:
    """1 if the context was repeated word for word."""
    return {"verbatim": float(prediction.split() == sample.references[0].split())}
