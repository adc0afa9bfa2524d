"""Finished runs as csv, one line a cell: a run's score in one task, or in the mean of its tasks.

These files (docs/data) are what published tables and figures are made of, so a line says all that a table needs: the
score with its interval and n, the full cache's score on the same samples, and how to get the number again.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from evals.differences import Scores
from evals.grid import make_grid
from evals.report.runs import (
    ALL,
    Result,
    budget_label,
    group_by_experiment,
    keeps_all,
    label,
    name_protocol,
    read_results,
    read_scores,
)
from evals.run.files import read_json, read_settings
from evals.run.folder import read_samples
from evals.stats import mean_interval
from lukv.names import BUDGETS

MEAN = "mean"
"""The task of the line that has the mean of a run's tasks."""


@dataclass(frozen=True)
class Cell:
    """A line of the file. Scores are in 0..1; empty texts are what does not apply."""

    model: str
    benchmark: str
    protocol: str  # question-agnostic or question-aware, or the benchmark's own name for how it asks
    method: str  # the row's name in a report: evals.report.runs.label
    scorer: str
    allocator: str
    budget: str  # "0.2" (the share kept), "128 tokens", "0.2 bytes" (that share of them), or "all"
    task: str
    score: float
    low: float  # 95% interval: evals.stats.mean_interval
    high: float
    n: int  # samples
    full: float | None  # the full cache's score on the same samples; None if it was not run
    run_id: str
    command: str
    commit: str
    bytes: float | None = None  # of the full cache's, in the model's dtype: the share that the cache takes


@dataclass(frozen=True)
class Square:
    """A line of NAME-grid.csv: one square of a run's grid of lengths and depths (evals.grid). The score is in 0..1."""

    model: str
    benchmark: str
    protocol: str
    method: str
    budget: str
    length: int
    depth: float
    score: float
    n: int
    run_id: str
    command: str
    commit: str


def collect(runs: Path, only: str = "*") -> list[Cell]:
    """The cells of the chosen runs. Raises ValueError where two runs would fill the same cell."""
    chosen, full = choose_runs(runs, only)
    cells = [cell for r in chosen for cell in describe(r, runs / r["run_id"], full.get(r["experiment"]))]
    check_unique(cells)
    return cells


def collect_squares(runs: Path, only: str = "*") -> list[Square]:
    """The squares of those of the chosen runs that have a grid."""
    squares = []
    for r in choose_runs(runs, only)[0]:
        grid = make_grid(read_samples(runs / r["run_id"] / "samples.jsonl"))
        if grid is None:
            continue
        about = name_run(r, runs / r["run_id"])
        common: dict[str, Any] = {field.name: about[field.name] for field in fields(Square) if field.name in about}
        for i, j in np.ndindex(len(grid.depths), len(grid.lengths)):
            if (score := grid.scores[i][j]) is not None:
                place = {"length": grid.lengths[j], "depth": grid.depths[i]}
                squares.append(Square(**common, **place, score=score, n=grid.counts[i][j]))
    return squares


def choose_runs(runs: Path, only: str) -> tuple[list[Result], dict[str, Scores]]:
    """The finished evaluations in `runs` whose ids match the pattern `only`, and the full cache's scores by experiment.

    Of runs that differ in limit= alone, the one of most samples counts, and of the full cache each that such a run is
    compared with. Raises ValueError where there is no run.
    """
    chosen = [r for r in read_results(runs) if fnmatchcase(r["run_id"], only)]
    found = [r for group in group_by_experiment(chosen).values() for r in group]
    if not found:
        raise ValueError(f"no finished run in {runs}/ matches {only}: see  ls {runs}")
    full = {r["experiment"]: read_scores(runs / r["run_id"]) for r in found if keeps_all(r)}
    evicting = keep_largest([r for r in found if not keeps_all(r)], runs)
    if not evicting:
        raise ValueError(f"of what matches {only}, only the full cache is finished: there is nothing to put beside it")
    used = {r["experiment"] for r in evicting}
    references = [r for r in found if keeps_all(r) and r["experiment"] in used]
    order = sorted(evicting, key=lambda r: (label(r), *(r["config"].get(key) or 0 for key in BUDGETS)))
    return [*sorted(references, key=count_samples), *order], full


def keep_largest(results: Iterable[Result], runs: Path) -> list[Result]:
    """Of the runs of one row at one budget that differ in limit= alone, the one of most samples."""
    largest: dict[tuple[str, ...], Result] = {}
    for r in sorted(results, key=count_samples):
        settings = read_settings(runs / r["run_id"] / "config.yaml")
        same = json.dumps([settings["benchmark"], settings["seed"]], sort_keys=True)
        largest[r["model"], name_row(r), budget_label(r), same] = r
    return list(largest.values())


def count_samples(r: Result) -> int:
    return sum(task["n"] for task in r["tasks"].values())


def describe(r: Result, folder: Path, full: Scores | None) -> list[Cell]:
    """The cells of one run: the mean of its tasks, then each task. full: the full cache's scores of its experiment."""
    common = {**name_run(r, folder), "bytes": r["budget"]["cache_bytes"] / r["budget"]["full_cache_bytes"]}
    mine = read_scores(folder)
    theirs = None if full is None else pair(mine, full, r["run_id"])
    cells = []
    for task, chosen in {MEAN: list(r["tasks"]), **{task: [task] for task in r["tasks"]}}.items():
        values = [list(mine[t].values()) for t in chosen]
        low, high = mean_interval(values)
        reference = None if theirs is None else mean_of_means([theirs[t] for t in chosen])
        score, n = mean_of_means(values), sum(map(len, values))
        cells.append(Cell(**common, task=task, score=score, low=low, high=high, n=n, full=reference))
    return cells


def name_run(r: Result, folder: Path) -> dict[str, str]:
    """What every line about a run has in common."""
    about = read_json(folder / "run.json")
    return {
        **{"model": r["model"], "benchmark": r["benchmark"], "protocol": name_protocol(about.get("benchmark", {}))},
        **{"method": name_row(r), "scorer": r["config"].get("scorer") or ""},
        **{"allocator": r["config"].get("allocator") or "", "budget": budget_label(r)},
        **{"run_id": r["run_id"], "command": without_places(about["command"]), "commit": name_commit(about)},
    }


def pair(mine: Scores, full: Scores, run_id: str) -> dict[str, list[float]]:
    """The full cache's scores on the samples of `mine`: task -> scores."""
    for task, scores in mine.items():
        if missing := scores.keys() - full.get(task, {}).keys():
            raise ValueError(f"{run_id}: the full cache has no score of sample {min(missing)}: remove that run")
    return {task: [full[task][i] for i in scores] for task, scores in mine.items()}


def mean_of_means(groups: Sequence[Sequence[float]]) -> float:
    return float(np.mean([np.mean(group) for group in groups]))


def name_row(r: Result) -> str:
    """The row's label. That tables lie where the model's own always do (models/NAME/tables) is left out of it."""
    usual = f"model.tables=models-{r['model']}-tables"  # as a run id spells it
    return " ".join(shorten(part) for part in label(r).split() if part != usual)


def name_commit(about: Mapping[str, Any]) -> str:
    """The commit that the run was made by, as git describes it: -dirty where files of the folder were not in it."""
    return str(about.get("git_sha") or "")[:12] + ("-dirty" if about.get("dirty") else "")


def without_places(command: str) -> str:
    """The command with every path that leads out of the folder it was typed in cut down to its last name: where data
    lie is the machine's affair.

    >>> without_places("python run.py benchmark.sources=/data/ruler model.path=../models/x")
    'python run.py benchmark.sources=ruler model.path=x'
    """
    return shlex.join(map(shorten, shlex.split(command)))


def shorten(word: str) -> str:
    """The word with such paths cut down."""
    return re.sub(r"(?:(?<=^)|(?<=[=,\[]))(?:~|\.\.)?/(?:[^/,\]]*/)*([^/,\]]+)/?", r"\1", word)


def check_unique(cells: Sequence[Cell]) -> None:
    """Raise ValueError where two runs fill one cell. The full cache may have been run on several sets of samples."""
    seen: dict[tuple[Any, ...], Cell] = {}
    for cell in cells:
        many = cell.n if cell.budget == ALL else 0
        key = (cell.model, cell.benchmark, cell.protocol, cell.method, cell.budget, cell.task, many)
        if key in seen:
            raise ValueError(
                f"{seen[key].run_id} and {cell.run_id} would fill the same cells: choose runs with --only PATTERN"
            )
        seen[key] = cell


def write_data(path: Path, lines: Sequence[Cell] | Sequence[Square]) -> None:
    """Write the file anew, with at least one line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, [field.name for field in fields(lines[0])], lineterminator="\n")
        writer.writeheader()
        for line in lines:
            row = asdict(line)
            numbers = {k: f"{v:.6g}" for k, v in row.items() if isinstance(v, float)}
            writer.writerow({**row, **numbers})


def read_data(path: Path) -> list[Cell]:
    """Raises ValueError for a file that `write_data` did not write. Older ones do not say the bytes."""
    return [read_cell(row, place) for row, place in read_lines(path, Cell)]


def read_squares(path: Path) -> list[Square]:
    """Raises ValueError for a file that `write_data` did not write."""
    return [read_square(row, place) for row, place in read_lines(path, Square)]


def read_lines(path: Path, kind: type[Cell] | type[Square]) -> Iterator[tuple[dict[str, str], str]]:
    """Each line by column, and where it stands. Columns with a default may be missing: older files lack them."""
    with path.open(newline="", encoding="utf-8") as f:
        reader = csv.DictReader(f)
        names = [field.name for field in fields(kind)]
        needed = [field.name for field in fields(kind) if field.default is MISSING]
        if list(reader.fieldnames or []) not in (names, needed):
            raise ValueError(f"{path} has the columns {reader.fieldnames}, not {names}: write it with report.py data")
        for row in reader:
            yield row, f"{path}, line {reader.line_num}"


def read_cell(row: Mapping[str, str], place: str) -> Cell:
    try:
        numbers: dict[str, Any] = {k: float(row[k]) for k in ("score", "low", "high")}
        numbers |= {"n": int(row["n"]), **{k: float(row[k]) if row.get(k) else None for k in ("full", "bytes")}}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from None
    return Cell(**{**row, **numbers})


def read_square(row: Mapping[str, str], place: str) -> Square:
    try:
        numbers: dict[str, Any] = {k: float(row[k]) for k in ("score", "depth")}
        numbers |= {k: int(row[k]) for k in ("n", "length")}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{place}: {error}") from None
    return Square(**{**row, **numbers})
