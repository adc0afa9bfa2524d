"""What became of the runs of a sweep: their scores as one matrix, every reason why there is none, where the files are.

All of it is read from the run folders, so a sweep that was done elsewhere or before is shown like any other.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from shutil import get_terminal_size
from typing import Any

from evals.run.compose import join_lines
from evals.run.files import read_json
from evals.run.folder import read_experiment
from evals.run.run_id import find_job
from evals.run.settings import Run, find_shipped
from evals.run.signals import survive_closed_pipe
from evals.run.sweep import PlannedRun, Sweep
from evals.text import percent, table
from lukv.names import BUDGETS


@dataclass(frozen=True)
class State:
    """A planned run at the end. name: done, skipped (it was finished before) or failed. reason: of a failure.
    result: the content of result.json, where it was read."""

    planned: PlannedRun
    name: str
    reason: str = ""
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        return self.planned.run


def summarize(sweep: Sweep) -> int:
    """Print what became of each run of a sweep, judged by the files in its folder; the exit code of the command."""
    states = [judge(p, sweep) for p in sweep.planned]
    if len(states) > 1 or sweep.slurm_logs is not None:  # what a run here printed, one on Slurm has in its log
        with survive_closed_pipe():
            print("\n".join(["", *draw_matrices(states, sweep), *list_states(states)]))
    unexplained = any(s.name == "failed" and s.run.id not in sweep.faults for s in states)
    return max([int(unexplained), *(fault.code for fault in sweep.faults.values())])


def judge(p: PlannedRun, sweep: Sweep) -> State:
    if p.run.id in sweep.faults:
        return State(p, "failed", sweep.faults[p.run.id].line)
    result, error = p.run.folder / "result.json", p.run.folder / "error.json"
    try:
        if result.exists():
            return State(p, "skipped" if p.finished else "done", result=read_json(result))
        if error.exists():
            return State(p, "failed", read_json(error)["error"])
    except ValueError as e:
        return State(p, "failed", join_lines(e))
    if not find_job(p.run.config).leaves_result:
        return State(p, "done")
    return State(p, "failed", "no result.json: killed, or still running" if p.run.folder.exists() else "left nothing")


def draw_matrices(states: Sequence[State], sweep: Sweep) -> Iterator[str]:
    """Method x budget, a matrix for each set of runs that may stand in one: their settings and prompts are the same."""
    experiments: dict[tuple[str, str | None], dict[str, State]] = {}
    for s in states:
        if "tasks" in s.result:
            experiments.setdefault(name_experiment(s.run), {})[s.run.id] = s
    for experiment, group in experiments.items():
        for reference in filter(None, [s.run.make_reference() for s in group.values()]):
            s = judge(PlannedRun(reference), sweep)
            if "tasks" in s.result and name_experiment(reference) == experiment:
                group.setdefault(reference.id, s)
        one = next(iter(group.values())).result
        n = sum(task["n"] for task in one["tasks"].values())
        yield f"{experiment[0]}: mean of {len(one['tasks'])} tasks (n = {n}) in per cent, 95% interval"
        yield draw_matrix(list(group.values()))
        if one.get("left_out"):
            yield f"left out, run.json says why: {', '.join(one['left_out'])}"
        yield ""


def name_experiment(run: Run) -> tuple[str, str | None]:
    """A chat template may say today's date: then the prompts of two days differ, though all settings are the same."""
    return run.comparison_id, read_experiment(run.folder)["asked"]


def draw_matrix(group: Sequence[State]) -> str:
    """The full cache first, the best of the others next. What keeps everything has the same score at every budget."""
    kept = {s.run.label: s.result for s in group if not s.run.evicts}
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    evicting = sorted(
        (s for s in group if s.run.evicts), key=lambda s: next(s.run[key] for key in BUDGETS if s.run[key])
    )
    budgets = list(dict.fromkeys(name_budget(s.run) for s in evicting)) or ["score"]
    for s in evicting:
        rows.setdefault(s.run.label, {})[name_budget(s.run)] = s.result
    best = sorted(rows.items(), key=lambda row: -sum(r["score"] for r in row[1].values()) / len(row[1]))
    lines = [*((label, dict.fromkeys(budgets, result)) for label, result in kept.items()), *best]
    cells = [[label, *(show_score(found[b]) if b in found else "" for b in budgets)] for label, found in lines]
    return fit_terminal([["method", *budgets], *cells])


def fit_terminal(rows: Sequence[Sequence[str]]) -> str:
    """The rows as a table; on a terminal that it is too wide for, its columns in several tables below each other."""
    whole = table(rows)
    if not sys.stdout.isatty() or len(whole.partition("\n")[0]) <= (width := get_terminal_size().columns):
        return whole
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    many = max(1, (width - first) // (max(others) + 2))
    starts = range(1, len(rows[0]), many)
    return "\n\n".join(table([[row[0], *row[i : i + many]] for row in rows]) for i in starts)


def name_budget(run: Run) -> str:
    if run["budget_bytes"] is not None:
        return f"{100 * run['budget_bytes']:g}% of bytes"
    return f"kept {100 * run['budget']:g}%" if run["budget"] is not None else f"{run['budget_tokens']} tokens"


def show_score(result: Mapping[str, Any]) -> str:
    low, high = result["ci95"]
    return f"{percent(result['score'])} ({percent(low)}-{percent(high)})"


def list_states(states: Sequence[State]) -> Iterator[str]:
    """A line for each run that is in no matrix, and for each reason why there is no result; commands that try again;
    the counts, and where the files are.

    Where a reason stopped several runs, the same command tries them again.
    """
    failed: dict[str, list[State]] = {}
    for s in states:
        if s.name == "failed":
            failed.setdefault(s.reason, []).append(s)
        elif "tasks" not in s.result:
            yield f"{s.run.id}  {s.name}"
    for reason, some in failed.items():
        yield f"{some[0].run.id}{f' and {len(some) - 1} more' if len(some) > 1 else ''}  failed  {reason}"
    for some in failed.values():
        if len(some) == 1:
            yield f"failed: {some[0].planned.command}"
    count = [f"{sum(s.name == name for s in states)} {name}" for name in ("done", "skipped", "failed")]
    yield f"{len(states)} run{'s' * (len(states) > 1)}: {', '.join(count)}"
    runs = states[0].run["runs"]
    if any("tasks" in s.result for s in states):
        where = "" if runs == find_shipped("runs") else f" --runs {shlex.quote(runs)}"
        yield f"in {runs}/; each task, differences, figures and a page: python report.py{where}"
