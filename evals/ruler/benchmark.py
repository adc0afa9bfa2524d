"""RULER as a benchmark: which tasks can run here, their samples cut for compression, their scores."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from evals.metrics import string_match_all, string_match_any
from evals.ruler import prepared as prepared_data
from evals.ruler.generator import Prompt, Unfit
from evals.ruler.sources import WHERE, Sources
from evals.ruler.split import split
from evals.ruler.suite import RULER, STAND_INS, TASKS, TOKENS_TO_GENERATE, Definition
from evals.ruler.words import WONDERWORDS
from evals.task import (
    SLACK,
    Metric,
    Sample,
    Task,
    Tokenizer,
    count_tokens,
    show_question,
    template_tokens,
    window,
)
from lukv.names import suggest_nearest

VERSION = 1
CONTROL = re.compile(r"[\x00-\x1f]")
CLEAN: Mapping[str, Callable[[str], str]] = {
    "official": lambda prediction: CONTROL.sub("\n", prediction.strip()).strip(),
    "kvpress": lambda prediction: CONTROL.sub("", prediction.strip()).strip(),
}
"""What is done to a prediction first: a number broken by a line end counts as found by kvpress, not by RULER."""


class Ruler:
    """Samples are the same for the same length, ruler_version, seed and tokenizer, whatever `limit` is.

    length          tokens of a sample, those to generate included. Where the model's window does not hold as many
                    beside its chat template, samples are made for what it does hold (`facts`: "made_for")
    tasks           names, or "available": all of RULER's 13 whose sources are there and that fit; for the others their
                    stand-ins (niah_multivalue_noise, niah_multivalue_prose, vt_plain ...), which are not RULER's tasks
    samples         at most so many a task (RULER: 500)
    ruler_version   2024 (the code behind kvpress's data and most papers) or 2025
    sources         folder with PaulGrahamEssays.json, punkt_tab/, squad.json, hotpotqa.json
    prepared        take samples from here (simonjegou/ruler or files in its layout) instead of generating them
    question_aware  the question is part of what is compressed
    scoring         which score comes first, "official" or "kvpress"; the other is recorded beside it
    first_token_may_end   false: the first token is never compared with end-of-text, as in kvpress's pipeline
    name            what this choice of tasks is called in the names of runs
    """

    def __init__(
        self,
        length: int = 4096,
        tasks: str | Sequence[str] = "available",
        samples: int = 500,
        ruler_version: int = 2024,
        seed: int = 42,
        sources: str | None = None,
        prepared: str | None = None,
        question_aware: bool = False,
        scoring: str = "official",
        first_token_may_end: bool = True,
        name: str = "ruler",
    ) -> None:
        if ruler_version not in (2024, 2025):
            raise ValueError(f"benchmark.ruler_version={ruler_version}: its code changed in 2025; choose 2024 or 2025")
        if scoring not in CLEAN:
            raise ValueError(f"benchmark.scoring={scoring}: choose {' or '.join(CLEAN)}")
        if length < 1 or samples < 1:
            raise ValueError(f"benchmark.length={length} and benchmark.samples={samples} must be at least 1")
        self.name = f"{name}-{length}"
        self.length, self.samples, self.ruler_version, self.seed = length, samples, ruler_version, seed
        self.question_aware, self.scoring = question_aware, scoring
        self.first_token_may_end = first_token_may_end
        self.sources = Sources(sources)
        self.prepared = prepared
        self.left_out: dict[str, str] = {}
        self.done: list[str] = []
        self.made_for: dict[str, int] = {}
        self.chosen = None if tasks == "available" else check_names([tasks] if isinstance(tasks, str) else list(tasks))

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        wanted = self.samples if limit is None else min(limit, self.samples)
        self.left_out, self.done, self.made_for = {}, [], {}
        if self.prepared is not None:
            yield from self.prepared_tasks(wanted)
            return
        if self.chosen is None:
            yield from self.available(tokenizer, wanted)
            return
        for name in self.chosen:
            missing = self.sources.missing(TASKS[name].needs)
            if missing:
                raise FileNotFoundError(self.explain(name, missing))
        for name in self.chosen:
            yield self.make(name, tokenizer, wanted)

    def available(self, tokenizer: Tokenizer, wanted: int) -> Iterator[Task]:
        replaced = set()
        for name, definition in TASKS.items():
            if name in STAND_INS and definition.stands_for not in replaced:
                continue
            missing = self.sources.missing(definition.needs)
            try:
                task = None if missing else self.make(name, tokenizer, wanted)
                reason = f"benchmark.sources has no {', '.join(missing)}"
            except Unfit as error:
                task, reason = None, str(error)
            if task is None:
                self.left_out[name] = reason
                replaced.add(name)
            else:
                yield task

    def explain(self, name: str, missing: Sequence[str]) -> str:
        what = "; ".join(f"{file} ({WHERE[file]})" for file in missing)
        folder = self.sources.folder or "a folder FOLDER and set benchmark.sources=FOLDER"
        others = [other for other, definition in STAND_INS.items() if definition.stands_for == name]
        instead = f", or run {' or '.join(others)}" if others else ""
        return f"ruler task {name} needs {what}: put it into {folder}{instead}, or set benchmark.tasks=available"

    def limit(self, name: str, tokenizer: Tokenizer) -> int:
        """Tokens of a sample of this task, those to generate included: `length`, or what the window holds beside the
        chat template. RULER's own program knows no template: at any other length its samples stay its own."""
        longest = window(tokenizer)
        if longest is None:
            return self.length
        forgotten = (
            TOKENS_TO_GENERATE["fwe"] if name == "fwe" and self.ruler_version == 2024 else 0
        )  # evals/ruler/fwe.py
        return min(self.length, longest - template_tokens(tokenizer) - SLACK - forgotten)

    def make(self, name: str, tokenizer: Tokenizer, wanted: int) -> Task:
        definition = TASKS[name]
        limit = self.limit(name, tokenizer)
        generator = definition.make(
            self.sources,
            name=name,
            limit=limit,
            tokens_to_generate=TOKENS_TO_GENERATE[definition.family],
            count_tokens=partial(count_tokens, tokenizer),
            ruler_version=self.ruler_version,
            seed=self.seed,
        )
        prompts = list(islice(generator.samples(), wanted))
        samples = [self.sample(name, definition, number, prompt) for number, prompt in enumerate(prompts)]
        self.done.append(name)
        if limit < self.length:
            self.made_for[name] = limit
        return Task(name, VERSION, definition.description, samples, self.metric(definition.family))

    def sample(self, name: str, definition: Definition, number: int, prompt: Prompt) -> Sample:
        context, question, answer_prefix = split(prompt.text, definition.family)
        sample = Sample(
            id=f"{name}-{number}",
            task=name,
            context=context,
            question=question,
            answer_prefix=answer_prefix,
            references=prompt.answers,
            max_new_tokens=TOKENS_TO_GENERATE[definition.family],
            first_token_may_end=self.first_token_may_end,
            extra={"length": prompt.length, "units": prompt.units},
        )
        return show_question(sample) if self.question_aware else sample

    def prepared_tasks(self, wanted: int) -> Iterator[Task]:
        assert self.prepared is not None
        found = prepared_data.load(self.prepared, self.length)
        names = list(found) if self.chosen is None else self.chosen
        for name in names:
            if name not in found or name not in RULER:
                raise ValueError(f"no RULER task {name} in {self.prepared}; it has: {', '.join(found)}")
            samples = [replace(s, first_token_may_end=self.first_token_may_end) for s in found[name][:wanted]]
            if self.question_aware:
                samples = [show_question(each) for each in samples]
            self.done.append(name)
            yield Task(name, VERSION, RULER[name].description, samples, self.metric(RULER[name].family))

    def metric(self, family: str) -> Metric:
        match = string_match_any if family == "qa" else string_match_all
        order = [self.scoring, *(name for name in CLEAN if name != self.scoring)]

        def score(prediction: str, sample: Sample) -> dict[str, float]:
            return {name: match(CLEAN[name](prediction), sample.references) for name in order}

        return score

    def facts(self) -> Mapping[str, Any]:
        return {
            "benchmark": "ruler",
            "length": self.length,
            "made_for": self.made_for,
            "ruler_version": self.ruler_version,
            "seed": self.seed,
            "question_aware": self.question_aware,
            "scoring": self.scoring,
            "first_token_may_end": self.first_token_may_end,
            "tasks": self.done,
            "not_rulers": [name for name in self.done if not TASKS[name].official],
            "left_out": self.left_out,
            "prepared": self.prepared,
            "sources": self.sources.fingerprints(),
            "wonderwords": WONDERWORDS,
        }


def check_names(names: list[str]) -> list[str]:
    for name in names:
        if name not in TASKS:
            near = suggest_nearest(name, TASKS)
            raise ValueError(f"benchmark.tasks: no ruler task {name!r}.{near} There are: available, {', '.join(TASKS)}")
    return names
