"""Several questions about one context in one conversation: earlier questions and answers stay in the cache.

A task is a turn, so that scores stand side by side by turn. `limit` counts conversations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from evals.jsonl import METRICS
from evals.rows import check_columns, check_references, data_files, read_rows
from evals.ruler import Ruler
from evals.ruler.suite import TASKS
from evals.task import Metric, Sample, Task, Tokenizer
from lukv.names import suggest_nearest

VERSION = 1
Talk = tuple[str, Metric, list[Sample]]
"""One conversation: the name of its tasks, their metric, its turns."""

HISTORIES = ("own", "expected")
RULER_TASKS = [name for name in TASKS if name.startswith("niah_multiquery")]
QUERY = re.compile(r"What are all the special magic numbers for (.+), and (.+) mentioned in the provided text\? ")


@dataclass(frozen=True)
class Form:
    """How one of SCBench's files is asked and scored: the text before the context, what a turn is in (`{input}`), the
    tokens of an answer and the metric, a key of evals.jsonl.METRICS."""

    before: str
    turn: str
    max_new_tokens: int
    metric: str


SCBENCH: Mapping[str, Form] = {
    "scbench_kv": Form(
        "Extract the value corresponding to the specified key in the JSON object below.\n\n",
        "{input}",
        150,
        "string_match_any",
    ),
    "scbench_prefix_suffix": Form("", "{input}", 150, "string_match_any"),
    "scbench_vt": Form("", "{input}", 30, "string_match_all"),
    "scbench_many_shot": Form("", "{input}", 10, "string_match_any"),
    "scbench_qa_eng": Form(
        "Read the book and answer the question. Be very concise in your answer.\n\n",
        "Question: {input}\nAnswer:",
        40,
        "string_match_any",
    ),
}
"""Prompts, lengths and scores of SCBench's own program (microsoft/MInference, scbench/, MIT) for the files whose scores
are of this kind. Its other files are scored by programs of their own."""


class Conversation:
    """data             None: RULER's contexts with four needles, each asked for in a turn of its own. Else a file or a
                        folder of jsonl in SCBench's form: {"context", "multi_turns": [{"input", "answer"}, ...]}, or of
                        LongBench's rows, {"context", "input", "answers"}: those of one context are the turns
    length, sources, seed  of RULER's contexts, as in benchmark=ruler
    tasks               of RULER's contexts: names, or None: niah_multiquery where `sources` has its essays, else its
                        stand-in on prose
    turns               of a conversation, at most; one that has fewer than two is left out
    samples             conversations, at most
    history             whose answers later turns see: the model's "own", or the "expected" ones, as in SCBench
    metric              a name of evals.jsonl.METRICS, for files that SCBench does not have
    max_new_tokens      of an answer, for the same
    """

    def __init__(
        self,
        data: str | None = None,
        length: int = 1024,
        tasks: str | Sequence[str] | None = None,
        sources: str | None = None,
        seed: int = 42,
        turns: int = 4,
        samples: int = 100,
        history: str = "own",
        metric: str = "answer_f1",
        max_new_tokens: int = 64,
    ) -> None:
        for key, count, least in (("samples", samples, 1), ("max_new_tokens", max_new_tokens, 1), ("turns", turns, 2)):
            if count < least:
                raise ValueError(f"benchmark.{key}={count} must be at least {least}")
        for key, value, known in (("history", history, HISTORIES), ("metric", metric, METRICS)):
            if value not in known:
                near = suggest_nearest(str(value), known)
                raise ValueError(f"benchmark.{key}={value}: no such {key}.{near} There are: {', '.join(known)}")
        self.data = None if data is None else Path(data).expanduser()
        self.length = length if data is None else None  # which must fit into the model
        self.turns, self.samples, self.history = turns, samples, history
        self.metric, self.max_new_tokens = metric, max_new_tokens
        if tasks is None:
            tasks = "niah_multiquery" if sources is not None else "niah_multiquery_prose"
        chosen = [tasks] if isinstance(tasks, str) else list(tasks)
        for name in chosen:
            if name not in RULER_TASKS:
                near = suggest_nearest(str(name), RULER_TASKS)
                raise ValueError(f"benchmark.tasks={name}: no such task.{near} There are: {', '.join(RULER_TASKS)}")
        self.ruler = Ruler(length, chosen, samples, seed=seed, sources=sources)
        self.name = f"conversation-{length if self.data is None else self.data.stem}"
        self.left_out: dict[str, str] = {}

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        """The first turns of all conversations, then the second ones, and so on."""
        count = self.samples if limit is None else min(limit, self.samples)
        found = self.read_ruler(tokenizer, count) if self.data is None else self.read_files(self.data, count)
        by_task: dict[tuple[str, int], list[Sample]] = {}
        metrics: dict[str, Metric] = {}
        for name, metric, talk in found:
            metrics[name] = metric
            for number, sample in enumerate(talk[: self.turns], start=1):
                by_task.setdefault((name, number), []).append(self.place(sample, name, number))
        for (name, number), samples in sorted(by_task.items()):
            yield Task(f"{name}_turn_{number}", VERSION, f"{name}, question {number}", samples, metrics[name])

    def place(self, sample: Sample, name: str, number: int) -> Sample:
        """The sample as a turn of its conversation, whose name its id is until then."""
        stays = ", ".join(sample.references) if self.history == "expected" else None
        return replace(
            sample,
            id=f"{sample.id}-{number}",
            task=f"{name}_turn_{number}",
            conversation=sample.id,
            turn=number,
            stays=None if stays is None else f" {stays}",
            extra={**sample.extra, "turn": number},
        )

    def read_ruler(self, tokenizer: Tokenizer, count: int) -> Iterator[Talk]:
        """Of each sample that asks for several keys at once: a question for each of them, in RULER's words."""
        for task in self.ruler.tasks(tokenizer, count):
            for sample in task.samples:
                found = QUERY.fullmatch(sample.question)
                assert found is not None, sample.question
                keys = [*found[1].split(", "), found[2]]
                talk = [
                    replace(
                        sample,
                        question=f"What is the special magic number for {key} mentioned in the provided text? ",
                        answer_prefix=f"The special magic number for {key} mentioned in the provided text is",
                        references=(value,),
                        max_new_tokens=32,
                    )
                    for key, value in zip(keys, sample.references, strict=True)
                ]
                yield task.name, task.metric, talk

    def read_files(self, path: Path, count: int) -> Iterator[Talk]:
        """At most so many conversations of each file."""
        self.left_out = {}
        for file in self.find_files(path):
            yield from self.read_file(file)[:count]

    def find_files(self, path: Path) -> list[Path]:
        """Raises FileNotFoundError for a place without jsonl files."""
        files = data_files(path, (".jsonl",)) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(f"benchmark.data={path} has no .jsonl file")
        return files

    def read_file(self, file: Path) -> list[Talk]:
        """The conversations of a file that have at least two turns. Raises ValueError that names file and line."""
        rows = read_rows(file, {"context": str})
        form = SCBENCH.get(file.stem)
        if form is None and file.stem.startswith("scbench_"):
            raise ValueError(f"{file}: SCBench scores it by a program that is not here; there are {', '.join(SCBENCH)}")
        form = form or Form("", "{input}", self.max_new_tokens, self.metric)
        talks: dict[str, list[Sample]] = {}
        for number, row in enumerate(rows, start=1):
            place = f"{file} line {number}"
            turns = row.get("multi_turns", [row])
            if "multi_turns" in row:
                check_turns(turns, place)
            talk = talks.setdefault(f"{place}" if "multi_turns" in row else row["context"], [])
            name = talk[0].id if talk else f"{file.stem}-{number}"
            talk += [make_turn(name, file.stem, row["context"], turn, form, place) for turn in turns]
        found = [talk for talk in talks.values() if len(talk) > 1]
        if len(found) < len(talks):
            self.left_out[file.stem] = f"{len(talks) - len(found)} contexts with a single question"
        return [(file.stem, make_metric(form.metric), talk) for talk in found]

    def facts(self) -> Mapping[str, Any]:
        own = {"turns": self.turns, "history": self.history, "left_out": self.left_out}
        if self.data is None:
            return {**self.ruler.facts(), "benchmark": "conversation", **own}
        files = self.find_files(self.data)
        hashes = {file.name: sha256(file.read_bytes()).hexdigest()[:16] for file in files}
        return {"benchmark": "conversation", "sha256": hashes, "metric": self.metric, **own}


def check_turns(turns: Any, place: str) -> None:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{place}: 'multi_turns' must be a list of objects, at least one")


def make_turn(name: str, task: str, context: str, turn: Mapping[str, Any], form: Form, place: str) -> Sample:
    """turn: {"input", "answer"} as in SCBench, where one right answer may be a text, or {"input", "answers"}."""
    key = "answer" if "answer" in turn else "answers"
    check_columns(turn, place, {"input": str, key: type(turn.get(key))})
    answers = turn[key] if isinstance(turn[key], list) else [turn[key]]
    return Sample(
        id=name,
        task=task,
        context=f"{form.before}{context}\n\n",
        question=form.turn.format(input=turn["input"]),
        references=check_references(answers, key, place),
        max_new_tokens=form.max_new_tokens,
    )


def make_metric(name: str) -> Metric:
    compute = METRICS[name]
    return lambda prediction, sample: {name: compute(prediction, sample.references)}
