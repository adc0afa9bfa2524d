"""A set of mathematical problems as a benchmark: its rows as prompts, and whether an answer is the right one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals import hub
from evals.mathematics.equal import same_answer
from evals.mathematics.extract import find_answer, find_boxed
from evals.rows import TABLES, Row, data_files, is_blank, read_table, split_of
from evals.task import Sample, Task, Tokenizer
from lukv.names import suggest_nearest

VERSION = 1
LIST = "evals/mathematics/README.md"
ASKED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
PROBLEM = ("problem", "question")
"""The columns that may hold the problem."""


@dataclass(frozen=True)
class Set:
    """title: in messages. configuration: on the hub. foreign: folders of others' or other versions' files beside it."""

    title: str
    configuration: str = "default"
    foreign: tuple[str, ...] = ()


SETS: Mapping[str, Set] = {
    "gsm8k": Set("GSM8K", "main", ("socratic", "example_model_solutions")),
    "math500": Set("MATH-500"),
    "aime25": Set("AIME25"),
}


class Mathematics:
    """
    name            a key of SETS
    data            a file or folder of the set's public files, or its name on the hub
    max_new_tokens  of a solution
    question_aware  what is asked for is part of what is compressed
    """

    def __init__(self, name: str, data: str, max_new_tokens: int = 1024, question_aware: bool = False) -> None:
        if name not in SETS:
            near = suggest_nearest(name, SETS)
            raise ValueError(f"benchmark.name={name}: no such set of problems.{near} There are: {', '.join(SETS)}")
        if max_new_tokens < 1:
            raise ValueError(f"benchmark.max_new_tokens={max_new_tokens} must be at least 1")
        self.name, self.data, self.max_new_tokens = name, data, max_new_tokens
        self.question_aware = question_aware
        self.done = 0

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        rows = self.read()
        samples = [self.sample(number, *row) for number, row in enumerate(rows[:limit], start=1)]
        self.done = len(samples)
        yield Task(self.name, VERSION, f"{SETS[self.name].title}, zero-shot", samples, score)

    def read(self) -> list[Row]:
        """Raises FileNotFoundError or ValueError with one line that says what is missing and where to get it."""
        about, path = SETS[self.name], Path(self.data).expanduser()
        if path.is_dir():
            return [row for file in find_files(path, about) for row in read_table(file, {})]
        if path.exists():
            return read_table(path, {})
        if not hub.names_hub(self.data):
            raise FileNotFoundError(
                f"benchmark.data={self.data} is missing: a file or folder of {about.title} is expected ({LIST})"
            )
        try:
            return hub.load_split(self.data, about.configuration, "test", {})
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"benchmark.data={self.data}: not a path here, and {error}; get its files where there is a network and "
                f"set benchmark.data=FOLDER ({LIST})"
            ) from error

    def sample(self, number: int, place: str, row: Mapping[str, Any]) -> Sample:
        problem = next((row[column] for column in PROBLEM if isinstance(row.get(column), str)), None)
        if problem is None or is_blank(problem):
            raise ValueError(f"{place} has no {' or '.join(map(repr, PROBLEM))} with a text")
        answer = read_gold(row.get("answer"), place)
        return Sample(
            id=f"{self.name}-{number}",
            task=self.name,
            context=problem + ASKED if self.question_aware else problem,
            question="" if self.question_aware else ASKED,
            references=(answer,),
            max_new_tokens=self.max_new_tokens,
        )

    def facts(self) -> Mapping[str, Any]:
        return {
            "benchmark": self.name,
            "data": self.data,
            "problems": self.done,
            "question_aware": self.question_aware,
        }


def find_files(folder: Path, about: Set) -> list[Path]:
    """The files of the test split, or all where none says that it is one. Raises FileNotFoundError without any."""
    files = [file for file in data_files(folder, TABLES) if not set(file.relative_to(folder).parts) & {*about.foreign}]
    chosen = [file for file in files if split_of(file) == "test"] or [file for file in files if not split_of(file)]
    if not chosen:
        raise FileNotFoundError(f"benchmark.data={folder} has no file of {about.title} ({LIST})")
    return chosen


def read_gold(answer: Any, place: str) -> str:
    """The right answer of a row: a text or a whole number, or what follows #### at the end of a solution."""
    if type(answer) not in (str, int):
        raise ValueError(f"{place}: 'answer' must be a text or a whole number")
    gold = str(answer).rpartition("####")[2].strip()
    if is_blank(gold):
        raise ValueError(f"{place}: 'answer' holds no answer")
    return gold


def score(prediction: str, sample: Sample) -> dict[str, float]:
    """correct, boxed and answered, as README.md beside this file says."""
    (gold,) = sample.references
    answer = find_answer(prediction)
    return {
        "correct": float(answer is not None and same_answer(answer, gold)),
        "boxed": float(find_boxed(prediction) == gold),
        "answered": float(answer is not None),
    }
