"""Published question sets as kvpress 0.5.5 asks them: one context, compressed; then a question and the answer's start.

A set says which tasks it has, makes prompts of a task's rows, and scores an answer. What is the same for all sets is
here: which tasks are asked for and whose files are there, contexts cut on the right to what the model takes, chat
template everywhere, and kvpress's rule that an answer's very first token does not end it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evals import hub
from evals.fit import NoRoom, check_max_length, count_room, cut_right
from evals.rows import Row, find_tables, read_table
from evals.task import Metric, Sample, Task, Tokenizer, check_tasks

LIST = "docs/benchmarks-list.md"
"""The page that says which files a set has and where they are."""


@dataclass(frozen=True)
class Prompt:
    """A row as it is asked, before its context is cut to the model. Texts and answers as in `Sample`.

    task   the row's own task, where a set's tasks are told by its rows; "": the one whose rows they are
    """

    context: str
    question: str
    answer_prefix: str
    references: tuple[str, ...]
    task: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """A task of a set."""

    description: str
    max_new_tokens: int
    metric: Metric


class Published(ABC):
    """
    name             of the benchmark, in run ids
    title            of the set, in messages
    catalog          its tasks
    columns          those that every row must have, with their types
    data             a folder, or the name of a data set of the hub
    tasks            names, "all", or "available": those whose files are there and that fit into the model
    max_length       tokens of a context; "auto": what the model leaves beside the longest question about it
    question_aware   the question is part of what is compressed
    """

    version = 1

    def __init__(
        self,
        name: str,
        title: str,
        catalog: Mapping[str, Entry],
        columns: Mapping[str, type],
        data: str,
        tasks: str | Sequence[str] = "available",
        max_length: int | str = "auto",
        question_aware: bool = False,
    ) -> None:
        check_max_length(max_length)
        self.name, self.title, self.catalog, self.columns = name, title, catalog, columns
        self.data = data
        self.folder = Path(data).expanduser()
        self.max_length = max_length
        self.question_aware = question_aware
        self.only_available = tasks == "available"
        every = tasks in ("available", "all")
        self.chosen = list(catalog) if every else check_tasks(tasks, list(catalog), title, ("available", "all"))
        self.done: dict[str, int] = {}
        self.left_out: dict[str, str] = {}

    def find(self, task: str) -> Sequence[Path]:
        """The files of a task in the folder."""
        return find_tables(self.folder, task)

    @abstractmethod
    def fetch(self, task: str) -> Iterable[Row]:
        """A task's rows from the hub. Raises FileNotFoundError or ValueError."""

    @abstractmethod
    def ask(self, task: str, place: str, row: Mapping[str, Any]) -> Iterable[Prompt]:
        """The prompts of a row: one, or one for each question about its context. Raises ValueError."""

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        local = self.folder.exists()
        if not local and not hub.names_hub(self.data):
            raise FileNotFoundError(
                f"benchmark.data={self.data} is missing: a folder of {self.title}'s files is expected ({LIST})"
            )
        if local and self.only_available and not any(self.find(name) for name in self.chosen):
            raise FileNotFoundError(
                f"benchmark.data={self.data} has no file of {self.title} ({self.chosen[0]}.jsonl ...; {LIST})"
            )
        self.done, self.left_out = {}, {}
        for name in self.chosen:
            if local and self.only_available and not self.find(name):
                self.left_out[name] = f"benchmark.data={self.data} has no file of it"
                continue
            prompts = [prompt for place, row in self.load(name, local) for prompt in self.ask(name, place, row)]
            try:
                rooms = self.measure(prompts, self.catalog[name].max_new_tokens, tokenizer)
            except NoRoom as error:
                if not self.only_available:
                    raise NoRoom(f"{name}: {error}") from error
                self.left_out[name] = str(error)
                continue
            for task, own in group(prompts, name).items():
                entry, samples = self.catalog[name], self.make(task, name, own[:limit], rooms, tokenizer)
                self.done[task] = len(samples)
                yield Task(task, self.version, entry.description, samples, entry.metric)

    def load(self, task: str, local: bool) -> list[Row]:
        if not local:
            try:
                return list(self.fetch(task))
            except FileNotFoundError as error:
                raise FileNotFoundError(
                    f"benchmark.data={self.data}: not a folder here, and {error}; get its files where there is a "
                    f"network and set benchmark.data=FOLDER ({LIST})"
                ) from error
        files = self.find(task)
        if not files:
            raise FileNotFoundError(
                f"benchmark.data={self.data} has no file of {task}; get it, or set benchmark.tasks=available"
            )
        return [row for file in files for row in read_table(file, self.columns)]

    def measure(self, prompts: Sequence[Prompt], max_new_tokens: int, tokenizer: Tokenizer) -> dict[str, int | None]:
        """Context -> tokens that it may have, None: as many as it has. They do not depend on which of the questions
        about it is asked, so that it stays one context, which is compressed once."""
        if isinstance(self.max_length, int):
            return {prompt.context: self.max_length for prompt in prompts}
        rooms: dict[str, int | None] = {}
        for prompt in prompts:
            room = count_room(tokenizer, prompt.question + prompt.answer_prefix, max_new_tokens, chat=True)
            other = rooms.get(prompt.context)
            rooms[prompt.context] = room if room is None or other is None else min(room, other)
        return rooms

    def make(
        self,
        task: str,
        name: str,
        prompts: Sequence[Prompt],
        rooms: Mapping[str, int | None],
        tokenizer: Tokenizer,
    ) -> list[Sample]:
        contexts = {}
        for context in {prompt.context for prompt in prompts}:
            room = rooms[context]
            contexts[context] = context if room is None else cut_right(context, room, tokenizer)
        return [
            Sample(
                id=f"{task}-{number}",
                task=task,
                context=contexts[prompt.context] + (prompt.question if self.question_aware else ""),
                question="" if self.question_aware else prompt.question,
                answer_prefix=prompt.answer_prefix,
                references=prompt.references,
                max_new_tokens=self.catalog[name].max_new_tokens,
                first_token_may_end=False,
                extra=prompt.extra,
            )
            for number, prompt in enumerate(prompts)
        ]

    def facts(self) -> Mapping[str, Any]:
        return {
            "benchmark": self.name,
            "protocol": "kvpress, question-aware" if self.question_aware else "kvpress",
            "data": self.data,
            "max_length": self.max_length,
            "question_aware": self.question_aware,
            "first_token_may_end": False,
            "tasks": self.done,
            "left_out": self.left_out,
        }


def group(prompts: Sequence[Prompt], name: str) -> dict[str, list[Prompt]]:
    """Task -> its prompts, in the order of the rows."""
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.task or name, []).append(prompt)
    return groups
