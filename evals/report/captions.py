"""What a figure or table is of, in words: model, benchmark, protocol, tasks, n, seed and the settings of its runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from evals.report.runs import Result


def describe_runs(group: Sequence[Result]) -> str:
    """Such as "tiny, ruler-1024, question-agnostic: 3 tasks, 20 samples of each (n = 60), seed 0".

    Where the runs differ, each value is named.
    """
    what = [join(r["model"] for r in group), join(r["benchmark"] for r in group), join(r["protocol"] for r in group)]
    tasks = list(dict.fromkeys(task for r in group for task in r["tasks"]))
    each = sorted({task["n"] for r in group for task in r["tasks"].values()})
    total = sorted({sum(task["n"] for task in r["tasks"].values()) for r in group})
    seeds = sorted({r["config"]["seed"] for r in group})
    if len(tasks) == 1:
        much = f"{tasks[0]}, n = {spell(total)}"
    else:
        much = f"{len(tasks)} tasks, {spell(each)} samples of each (n = {spell(total)})"
    said = f"seed{'s' * (len(seeds) > 1)} {join(seeds)}"
    return f"{', '.join(what)}: {', '.join([much, said, *dict.fromkeys(s for r in group for s in list_settings(r))])}"


def list_settings(r: Result) -> list[str]:
    """The settings in the name of the run's experiment (model__benchmark__n50__s0__SETTING...) that depart from the
    options' own."""
    _, _, *settings = r["experiment"].split("__")
    limit, seed = r["config"]["limit"], r["config"]["seed"]
    return [s for s in settings if s not in (f"n{limit}", f"s{seed}") and s != r["data"]]


def join(values: Iterable[Any]) -> str:
    return ", ".join(map(str, dict.fromkeys(values)))


def spell(counts: Sequence[int]) -> str:
    """One number, or the smallest to the largest."""
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
