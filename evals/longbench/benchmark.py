"""LongBench and LongBench-E as a benchmark."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from evals.fit import check_max_length, count_room
from evals.longbench.catalog import CATALOG, ENGLISH, Entry
from evals.longbench.data import HUB, Data
from evals.longbench.protocols import PROTOCOLS
from evals.longbench.score import BUCKETS, Scorer, bucket
from evals.task import NO_WINDOW, Metric, Sample, Task, Tokenizer, check_tasks

VERSION = 1


class LongBench:
    """
    data             folder of LongBench's jsonl files, or the name of the data set on the hub
    protocol         agnostic, official, defensivekv, kvpress or lukv (evals/longbench/protocols.py)
    tasks            names, or "all" (21), "english" (16), "available" (those whose files are there)
    e                LongBench-E: 13 tasks, each in three buckets of length, named qasper_0-4k, qasper_4-8k, qasper_8k+
    max_length       tokens of a prompt (official) or a context; pred.py takes 3500, 7500, 15500, 31500 for windows of
                     4k, 8k, 16k, 32k; "auto": what the tokenizer's model_max_length leaves beside question, answer
                     and chat template (lukv: the tokenizer's own limit, as its files state it, and nothing is cut where
                     they do not)
    recursion_zero   LongBench scores 0 where its ROUGE package ends in a RecursionError; false: the true value
    """

    def __init__(
        self,
        data: str = HUB,
        protocol: str = "agnostic",
        tasks: str | Sequence[str] = "available",
        e: bool = False,
        max_length: int | str = "auto",
        recursion_zero: bool = True,
    ) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError(f"benchmark.protocol={protocol}: choose {', '.join(PROTOCOLS)}")
        check_max_length(max_length)
        self.name = f"longbench{'-e' if e else ''}-{protocol}"
        self.data = data
        self.protocol = protocol
        self.e = e
        self.max_length = max_length
        self.recursion_zero = recursion_zero
        self.chosen = choose(tasks, e)
        self.only_available = tasks == "available"
        self.done: dict[str, int] = {}
        self.left_out: dict[str, str] = {}

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        data = Data(self.data)
        self.done, self.left_out = {}, {}
        for name in self.chosen:
            file = f"{name}_e" if self.e else name
            if self.only_available and not data.has(file):
                self.left_out[name] = f"benchmark.data={self.data} has no {file}.jsonl"
                continue
            for task in self.make(name, data.rows(file), tokenizer, limit):
                self.done[task.name] = len(task.samples)
                yield task
        if not self.done:
            raise FileNotFoundError(f"benchmark.data={self.data} has no file of a LongBench task (qasper.jsonl ...)")

    def make(self, name: str, rows: list[dict[str, Any]], tokenizer: Tokenizer, limit: int | None) -> Iterator[Task]:
        entry = CATALOG[name]
        numbered = list(enumerate(rows))
        if self.e:
            groups = {
                f"{name}_{length}": [(i, row) for i, row in numbered if bucket(row["length"]) == length]
                for length in BUCKETS
            }
        else:
            groups = {name: numbered}
        for task, chosen in groups.items():
            if not chosen:
                self.left_out[task] = "no row of this length"
                continue
            samples = [self.sample(task, entry, row, i, rows, tokenizer) for i, row in chosen[:limit]]
            yield Task(task, VERSION, entry.description, samples, self.metric(name))

    def sample(
        self,
        task: str,
        entry: Entry,
        row: dict[str, Any],
        number: int,
        rows: list[dict[str, Any]],
        tokenizer: Tokenizer,
    ) -> Sample:
        protocol = PROTOCOLS[self.protocol]
        pieces = protocol.pieces(entry, row)
        max_new_tokens = entry.max_new_tokens + protocol.more_tokens
        layout, context_tokens = protocol.layout(entry), None
        chat = (entry.chat or not protocol.plain) and layout != "bare"
        if protocol.cut is None:
            context_tokens = self.own_limit(tokenizer)
        else:
            after = "" if layout == "whole" else "".join(pieces[1:])
            room = self.room(after, max_new_tokens, tokenizer, chat)
            if room is not None:
                pieces = protocol.cut(pieces, room, tokenizer)
        context, question, answer_prefix = pieces
        line_end = protocol.plain and entry is CATALOG["samsum"]
        judge = protocol.judged_by(rows, row)
        return Sample(
            id=f"{task}-{number}",
            task=task,
            context=context,
            question=question,
            seen_question=find_seen_question(entry, row, context) if self.protocol == "official" else "",
            answer_prefix=answer_prefix,
            references=row["answers"],
            max_new_tokens=max_new_tokens,
            min_new_tokens=1 if line_end else 0,
            chat=chat,
            layout=layout,
            context_tokens=context_tokens,
            first_token_may_end=protocol.first_token_may_end,
            stop=("\n",) if line_end else (),
            extra={"all_classes": judge["all_classes"], "length": row["length"], "row": row.get("_id", number)},
        )

    def room(self, after: str, max_new_tokens: int, tokenizer: Tokenizer, chat: bool) -> int | None:
        """Tokens for the context; None: as many as it has."""
        if isinstance(self.max_length, int):
            return self.max_length
        return count_room(tokenizer, after, max_new_tokens, chat)

    def own_limit(self, tokenizer: Tokenizer) -> int | None:
        """What the tokenizer's files say, whatever the model takes; None: nothing."""
        if isinstance(self.max_length, int):
            return self.max_length
        stated = getattr(tokenizer, "init_kwargs", {}).get("model_max_length")
        return None if stated is None or stated >= NO_WINDOW else stated

    def metric(self, name: str) -> Metric:
        scorer = Scorer(name, PROTOCOLS[self.protocol].scoring, self.recursion_zero)

        def score(prediction: str, sample: Sample) -> dict[str, float]:
            return scorer(prediction, sample.references, sample.extra["all_classes"])

        return score

    def facts(self) -> Mapping[str, Any]:
        return {
            "benchmark": "longbench-e" if self.e else "longbench",
            "protocol": self.protocol,
            "data": self.data,
            "max_length": self.max_length,
            "first_token_may_end": PROTOCOLS[self.protocol].first_token_may_end,
            "recursion_zero": self.recursion_zero,
            "tasks": self.done,
            "left_out": self.left_out,
        }


def find_seen_question(entry: Entry, row: Mapping[str, Any], context: str) -> str:
    """What stands behind the text in the official prompt: instruction, question, cue. Empty if a cut has damaged it."""
    asked = (entry.second + entry.question + entry.cue).format(input=row["input"])
    return asked if context.endswith(asked) else ""


def choose(tasks: str | Sequence[str], e: bool) -> list[str]:
    every = [name for name, entry in CATALOG.items() if entry.in_e or not e]
    if tasks in ("available", "all"):
        return every
    if tasks == "english":
        return [name for name in every if name in ENGLISH]
    return check_tasks(tasks, every, "LongBench-E" if e else "LongBench", ("available", "all", "english"))
