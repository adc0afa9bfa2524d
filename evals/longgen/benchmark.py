"""longgen as a benchmark: lists drawn from a seed, as prompts, and how much of a list an answer has in order."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals.longgen.score import read_items, score_items
from evals.longgen.tasks import TASKS
from evals.longgen.words import WORDS
from evals.ruler.words import WONDERWORDS
from evals.task import Sample, Task, Tokenizer, check_tasks, count_tokens

VERSION = 1
ROUND = 32
"""Limits of answers are multiples of this, so that samples are decoded together."""


class LongGen:
    """Samples are the same for the same items and seed, whatever the tokenizer and `limit`.

    items    how long the lists are, and so the answers
    tasks    names of tasks.TASKS
    samples  at most so many a task
    """

    def __init__(
        self, items: int = 24, tasks: str | Sequence[str] = tuple(TASKS), samples: int = 100, seed: int = 0
    ) -> None:
        if not 1 <= items <= len(WORDS):
            raise ValueError(f"benchmark.items={items}: lists have 1 to {len(WORDS)} items")
        if samples < 1:
            raise ValueError(f"benchmark.samples={samples} must be at least 1")
        self.name = f"longgen-{items}"
        self.items, self.samples, self.seed = items, samples, seed
        self.chosen = check_tasks(tasks, list(TASKS), "longgen")

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        count = self.samples if limit is None else min(limit, self.samples)
        for name in self.chosen:
            samples = [self.sample(name, number, tokenizer) for number in range(count)]
            yield Task(name, VERSION, f"{name}, {self.items} items", samples, score)

    def sample(self, task: str, number: int, tokenizer: Tokenizer) -> Sample:
        problem = TASKS[task](random.Random(f"longgen/{self.seed}/{task}/{number}"), self.items)
        tokens = count_tokens(tokenizer, problem.answer)
        return Sample(
            id=f"{task}-{number}",
            task=task,
            context=problem.context,
            question=problem.question,
            references=problem.items,
            max_new_tokens=-(-(tokens + tokens // 4) // ROUND) * ROUND,  # a quarter more than it takes
            answer_prefix=problem.answer_prefix,
            stop=problem.stop,
        )

    def facts(self) -> Mapping[str, Any]:
        return {"benchmark": "longgen", "items": self.items, "seed": self.seed, "wonderwords": WONDERWORDS}


def score(prediction: str, sample: Sample) -> dict[str, float]:
    return score_items(read_items(sample.task, prediction), sample.references)
