"""lukv.evaluate: a benchmark's scores of some methods, from Python. The same prompts, batches and means as run.py's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

from evals.errors import InputError
from evals.jobs.decode import ActiveMethod, answer_each
from evals.jobs.means import average
from evals.jobs.progress import show_progress
from evals.jobs.prompts import cut_batches, tokenize
from evals.run.records import TaskScore
from evals.task import Benchmark
from lukv.allocation import Budget
from lukv.backend.lend import lend_attention
from lukv.library import pair
from lukv.model import AnyModel, LoadedModel, Tokenizer
from lukv.named import check_fits, make_option, method
from lukv.selection import Eviction


class Row(TypedDict):
    """A method at a budget. Scores and shares are 0..1, bytes are means of one context's cache."""

    method: str
    budget: float  # asked for; 1 for a method that keeps everything
    score: float  # mean of the tasks' scores
    ci95: list[float]
    n: int
    tasks: dict[str, TaskScore]
    kept_share: float
    cache_bytes: float
    full_cache_bytes: float


def evaluate(
    model: AnyModel,
    tokenizer: Tokenizer,
    benchmark: str | Benchmark,
    methods: Sequence[str | Eviction],
    budgets: Sequence[float],
    *,
    limit: int | None = None,
    tables: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    batch_size: int = 8,
) -> list[Row]:
    """Score each method at each budget; a row for each, in that order. All of them share one prefill of each context.

    benchmark: a name of conf/benchmark or an object (evals.task.Benchmark). methods: names, or what `lukv.method`
    returned, which is then evaluated at these budgets and not at its own. A method that keeps everything has one row.
    limit: at most so many samples of each task. tables: as for `lukv.method`. settings: single values of the benchmark
    given by name, as {"benchmark.length": 512}. batch_size: contexts compressed together.

    Raises ValueError for a wrong name or a prompt that does not fit into the model, before anything is computed;
    RuntimeError where memory does not hold a sample.
    """
    if settings and not isinstance(benchmark, str):
        raise InputError("settings are those of a benchmark given by name: this one is an object")
    chosen = benchmark if not isinstance(benchmark, str) else make_option("benchmark", benchmark, settings)
    rows: list[tuple[str, float, ActiveMethod]] = []
    for each in methods:
        name = each if isinstance(each, str) else each.scorer.name
        for budget in budgets:
            eviction = at_budget(each, budget, model, tables)
            if eviction is None:
                rows.append((name, 1.0, ActiveMethod(None, {})))
                break
            rows.append((name, budget, ActiveMethod(eviction, {})))
    if not rows:
        raise InputError("nothing to evaluate: give at least one method and one budget")
    run_all([run for *_, run in rows], make_loaded(model, tokenizer), chosen, limit, batch_size)
    return [make_row(*row) for row in rows]


def at_budget(each: str | Eviction, budget: float, model: AnyModel, tables: str | Path | None) -> Eviction | None:
    if isinstance(each, str):
        return method(each, budget, model, tables=tables)
    return replace(each, budget=Budget(budget))


def make_loaded(model: AnyModel, tokenizer: Tokenizer) -> LoadedModel:
    """The model with a tokenizer that knows what the model takes, as benchmarks that cut prompts ask it. The user's
    own stays as it is."""
    loaded = pair(model, copy(tokenizer))
    if loaded.max_length is not None:
        loaded.tokenizer.model_max_length = min(loaded.tokenizer.model_max_length, loaded.max_length)
    return loaded


def run_all(
    runs: Sequence[ActiveMethod], loaded: LoadedModel, benchmark: Benchmark, limit: int | None, batch_size: int
) -> None:
    """Let every method answer every sample."""
    samples, _ = tokenize(loaded, benchmark, limit)
    with lend_attention(loaded.model):
        for run in runs:
            if run.eviction is not None:
                check_fits(run.eviction, loaded)
        with show_progress(f"{loaded.name}, {benchmark.name}", len(samples) * len(runs)) as reached:
            reached(0)
            for batch in cut_batches(samples, batch_size):
                for run, lines in answer_each(batch, runs, loaded, together=len(runs) > 1):
                    run.record(lines)
                reached(sum(len(run.done) for run in runs))


def make_row(name: str, budget: float, run: ActiveMethod) -> Row:
    """Raises what went wrong with the run."""
    if run.failure is not None:
        raise run.failure
    if run.failed:
        raise RuntimeError(f"{name}: {len(run.failed)} samples failed, the first with: {run.failed[0]['error']}")
    means = average(list(run.done.values()))
    kept = means["budget"]
    return {
        "method": name,
        "budget": budget,
        "score": means["score"],
        "ci95": means["ci95"],
        "n": len(run.done),
        "tasks": means["tasks"],
        "kept_share": kept["kept_share"],
        "cache_bytes": kept["cache_bytes"],
        "full_cache_bytes": kept["full_cache_bytes"],
    }
