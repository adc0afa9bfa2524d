"""Several benchmarks as one source of contexts, each with its share: calibration=mix."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain, zip_longest
from typing import Any

from evals.task import Benchmark, Sample, Task, Tokenizer

VERSION = 1


class Mixture:
    """`parts`: name -> {"benchmark": a benchmark, "share": its share of the contexts}. One share may be None: it is
    what the others leave. A part whose share is 0 is left out.

    Contexts of the parts alternate, so that any number of first ones has the shares as nearly as can be. A part takes
    turns among its tasks. A context counts once, however many questions a part asks about it.
    """

    def __init__(self, parts: Mapping[str, Mapping[str, Any]]) -> None:
        for name, part in parts.items():
            if set(part) != {"benchmark", "share"}:
                raise ValueError(f"benchmark.parts.{name} must have `benchmark` and `share`; it has {', '.join(part)}")
        self.shares = complete_shares({name: part["share"] for name, part in parts.items()})
        self.sources: dict[str, Benchmark] = {name: parts[name]["benchmark"] for name in self.shares}
        self.name = "-".join(["mix", *self.shares])
        self.contexts: dict[str, int] = {}

    def tasks(self, tokenizer: Tokenizer, limit: int | None = None) -> Iterator[Task]:
        """One task. `limit`: its contexts."""
        if limit is None:
            raise ValueError("calibration.contexts=null: a mixture needs their number, which it divides by the shares")
        turns = list(take_turns(self.shares, limit))
        self.contexts = {name: turns.count(name) for name in self.shares}
        found = {name: iter(self.find(name, tokenizer)) for name in self.shares}
        samples = [each for name in turns for each in next(found[name])]
        yield Task("mix", VERSION, "contexts of " + ", ".join(self.shares), samples, no_score)

    def find(self, name: str, tokenizer: Tokenizer) -> list[list[Sample]]:
        """As many contexts as the part has to give, each with its questions."""
        wanted, source = self.contexts[name], self.sources[name]
        if wanted == 0:
            return []
        tasks = len(list(source.tasks(tokenizer, 1)))
        each = -(-wanted // max(tasks, 1))
        found: list[list[Sample]] = []
        for limit in (each, None):  # None: where a task counts questions, or has too few contexts
            found = alternate(list(source.tasks(tokenizer, limit)))
            if len(found) >= wanted:
                return [[replace(s, id=f"{name}-{s.id}") for s in samples] for samples in found]
        raise ValueError(
            f"calibration.benchmark.parts.{name} has {len(found)} contexts, and its share asks for {wanted}: "
            f"lower the share or calibration.contexts"
        )

    def facts(self) -> Mapping[str, Any]:
        parts = {
            name: {"share": share, "contexts": self.contexts.get(name, 0), **self.sources[name].facts()}
            for name, share in self.shares.items()
        }
        return {"benchmark": self.name, "parts": parts}


def complete_shares(shares: Mapping[str, float | None]) -> dict[str, float]:
    """The shares above 0, with what the others leave for the one that is None. Raises ValueError unless they are 1 in
    all.

    >>> complete_shares({"a": None, "b": 0.25, "c": 0})
    {'a': 0.75, 'b': 0.25}
    """
    known = [share for share in shares.values() if share is not None]
    rest = 1 - sum(known)
    left = rest if len(known) < len(shares) else 0.0
    if len(known) < len(shares) - 1 or min([*known, left]) < 0 or abs(rest - left) > 1e-9:
        said = ", ".join(f"{name}={'null' if share is None else f'{share:g}'}" for name, share in shares.items())
        raise ValueError(
            f"the shares of benchmark.parts are {said}: none may be below 0, together they must be 1, and at most one "
            f"may be null, which is what the others leave"
        )
    complete = {name: left if share is None else share for name, share in shares.items()}
    return {name: share for name, share in complete.items() if share > 1e-9}


def take_turns(shares: Mapping[str, float], count: int) -> Iterator[str]:
    """Whose turn it is, `count` times: always the one that is furthest behind its share.

    >>> "".join(take_turns({"a": 0.75, "b": 0.25}, 8))
    'aabaaaba'
    """
    taken = dict.fromkeys(shares, 0)
    for number in range(1, count + 1):
        name = max(shares, key=lambda name: shares[name] * number - taken[name])
        taken[name] += 1
        yield name


def alternate(tasks: list[Task]) -> list[list[Sample]]:
    """The contexts of all tasks, each with its questions: the first of each task, then the second of each ..."""
    columns = []
    for task in tasks:
        contexts: dict[tuple[Any, ...], list[Sample]] = {}
        for sample in task.samples:
            contexts.setdefault((sample.context, sample.chat, sample.layout), []).append(sample)
        columns.append(contexts.values())
    return [samples for samples in chain(*zip_longest(*columns)) if samples is not None]


def no_score(prediction: str, sample: Sample) -> dict[str, float]:
    raise ValueError("a mixture has no score of its own: it is for job=calibrate only")
