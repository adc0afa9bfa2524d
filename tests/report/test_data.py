"""report.py data: the csv that published tables are made of."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.report.data import MEAN, Cell, collect, read_data, read_squares, without_places, write_data
from evals.report.runs import read_results
from tests.as_typed import ROOT, process
from tests.report.finished_runs import write_evaluation

OLD = ROOT / "tests" / "cli" / "old_runs" / "evaluate"
FULL = {"one": [1.0, 1.0, 0.0, 1.0], "two": [0.5, 0.5]}
MINE = {"one": [1.0, 0.0, 0.0, 0.0], "two": [0.25, 0.5]}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    write_evaluation(tmp_path, FULL, "method=full")
    write_evaluation(tmp_path, MINE, "method=lukv", "budget=0.1")
    write_evaluation(tmp_path, MINE, "method=snapkv", "budget=0.1", "scorer.window=16")
    return tmp_path


def find(cells: list[Cell], method: str, task: str) -> Cell:
    (cell,) = (c for c in cells if (c.method, c.task) == (method, task))
    return cell


def test_a_line_says_everything(runs: Path) -> None:
    cells = collect(runs)
    assert len(cells) == 3 * 3
    mean, one = (find(cells, "lukv", task) for task in (MEAN, "one"))
    assert (mean.score, mean.n, mean.full) == ((0.25 + 0.375) / 2, 6, (0.75 + 0.5) / 2)
    assert (one.score, one.n, one.full) == (0.25, 4, 0.75)
    assert (one.low, one.high) == pytest.approx(
        (0.0063, 0.8059), abs=1e-4
    )  # Clopper and Pearson, 1 of 4: R's binom.test
    assert (mean.model, mean.benchmark, mean.protocol) == ("tiny", "ruler-512", "question-agnostic")
    assert (mean.scorer, mean.allocator, mean.budget) == ("keydiff", "budget_table", "0.1")
    assert mean.command == "python run.py method=lukv budget=0.1"
    assert find(cells, "snapkv scorer.window=16", MEAN).allocator == "uniform"
    assert [c.method for c in cells[:3]] == ["full"] * 3
    assert find(cells, "full", MEAN).budget == "all"


def test_it_is_read_as_it_was_written(runs: Path, tmp_path: Path) -> None:
    cells = collect(runs)
    write_data(tmp_path / "a" / "x.csv", cells)
    again = read_data(tmp_path / "a" / "x.csv")
    for cell, same in zip(cells, again, strict=True):
        numbers = {k: pytest.approx(getattr(cell, k), rel=1e-5) for k in ("score", "low", "high", "full", "bytes")}
        assert replace(same, **{k: getattr(cell, k) for k in numbers}) == cell
        assert {k: getattr(same, k) for k in numbers} == numbers
    (tmp_path / "bad.csv").write_text((tmp_path / "a" / "x.csv").read_text().replace("0.25", "a quarter"))
    with pytest.raises(ValueError, match=r"bad.csv, line \d+: could not convert"):
        read_data(tmp_path / "bad.csv")
    (tmp_path / "bad.csv").write_text("model,score\n")
    with pytest.raises(ValueError, match=r"report\.py data"):
        read_data(tmp_path / "bad.csv")


def write_more(runs: Path, scores: dict[str, list[float]], limit: int, *overrides: str) -> str:
    """A finished run as `write_evaluation` makes it, with another limit."""
    return write_evaluation(runs, scores, *overrides, f"limit={limit}")


def test_the_largest_run_counts_and_its_own_full_cache(runs: Path) -> None:
    more, better = ({task: values * 2 for task, values in x.items()} for x in (FULL, MINE))
    write_more(runs, more, 80, "method=full")
    write_more(runs, better, 80, "method=lukv", "budget=0.1")
    cells = collect(runs)
    assert find(cells, "lukv", MEAN).n == 12
    assert find(cells, "snapkv scorer.window=16", MEAN).n == 6
    assert sorted(c.n for c in cells if c.method == "full" and c.task == MEAN) == [6, 12]
    small = [c.run_id for c in collect(runs, "*__n80__*")]
    assert set(small) == {r["run_id"] for r in read_results(runs) if "__n80__" in r["run_id"]}


def test_two_runs_for_one_cell_are_refused(runs: Path) -> None:
    write_evaluation(runs, MINE, "method=lukv", "budget=0.1", "seed=1")
    with pytest.raises(ValueError, match="would fill the same cells: choose runs with --only"):
        collect(runs)
    assert collect(runs, "*__s0*")


def test_a_full_cache_of_other_samples_is_refused(runs: Path) -> None:
    path = next(runs.glob("tiny__full__*/samples.jsonl"))
    result = path.with_name("result.json")
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines()[1:]))
    with pytest.raises(ValueError, match=r"has other samples than result\.json"):
        collect(runs)
    stored = json.loads(result.read_text())
    stored["tasks"]["one"]["n"] -= 1
    result.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="the full cache has no score of sample one-0"):
        collect(runs)


def test_runs_of_an_older_version(tmp_path: Path) -> None:
    """Its interval was a percentile bootstrap's: 100..100 of three right answers. Now both commands say Clopper's."""
    shutil.copytree(OLD, tmp_path / json.loads((OLD / "result.json").read_text())["run_id"])
    (result,) = read_results(tmp_path)
    low = 0.025 ** (1 / 3)
    assert result["tasks"]["niah_single_1"]["ci95"] == [pytest.approx(low), 1]
    mean, task = collect(tmp_path)
    assert (mean.low, task.low, task.high, task.full) == (pytest.approx(low), pytest.approx(low), 1, None)
    assert mean.method == "lukv"
    assert mean.commit.startswith(json.loads((OLD / "run.json").read_text())["git_sha"][:12])


@pytest.mark.parametrize(("folder", "row"), [("models-tiny", ""), ("elsewhere", " model.tables=elsewhere-tables")])
def test_the_models_own_tables_are_no_part_of_a_rows_name(folder: str, row: str, tmp_path: Path) -> None:
    """Older versions named the folder in the run id wherever it was typed."""
    result = json.loads((OLD / "result.json").read_text())
    result["run_id"] += f"__model.tables={folder}-tables"
    shutil.copytree(OLD, tmp_path / result["run_id"])
    (tmp_path / result["run_id"] / "result.json").write_text(json.dumps(result))
    assert {c.method for c in collect(tmp_path)} == {f"lukv{row}"}


def test_a_row_is_not_named_by_a_place(tmp_path: Path) -> None:
    write_evaluation(tmp_path, MINE, "method=lukv", "budget=0.2", f"model.tables={tmp_path}/mine")
    assert {c.method for c in collect(tmp_path)} == {"lukv allocator.path=keydiff.safetensors"}


@given(st.lists(st.text("ab._-", min_size=1, max_size=4).filter(lambda x: x.strip(".")), min_size=1, max_size=4))
def test_commands_name_no_place(parts: list[str]) -> None:
    path, last = "/".join(parts), parts[-1]
    typed = f"/{path}/run.py model.path=/{path} 'calibration=file:x' runs=../{path} 'a=[~/{path},b/{path}]' k={path}"
    assert (
        without_places(typed)
        == f"run.py model.path={last} calibration=file:x runs={last} 'a=[{last},b/{path}]' k={path}"
    )


def test_as_typed(runs: Path, tmp_path: Path) -> None:
    to = str(tmp_path / "data")
    done = process("data", "--runs", str(runs), "--name", "x", "--to", to, program="report.py")
    assert (done.returncode, done.stdout) == (0, f"3 runs, 9 cells: {to}/x.csv\n"), done.stderr
    assert len(read_data(tmp_path / "data" / "x.csv")) == 9
    for wrong, said in (("*nothing*", "no finished run in"), ("*full*", "only the full cache is finished")):
        done = process("data", "--runs", str(runs), "--name", "x", "--only", wrong, program="report.py")
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stderr.count("\n") == 1


DATA = [path for path in sorted((ROOT / "docs" / "data").glob("*.csv")) if path.stem != "architectures"]
GRIDS = [path for path in DATA if path.stem.endswith("-grid")]
CELLS = [path for path in DATA if path not in GRIDS]


@pytest.mark.parametrize("path", CELLS, ids=lambda p: p.stem)
def test_the_published_files(path: Path) -> None:
    """They can be read, name no place of a machine, and their means are the means of their tasks."""
    cells = read_data(path)
    runs: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        assert without_places(cell.command) == cell.command
        assert 0 <= cell.low <= cell.score <= cell.high <= 1
        runs.setdefault(cell.run_id, {})[cell.task] = cell
    for tasks in runs.values():
        mean = tasks.pop(MEAN)
        assert mean.score == pytest.approx(np.mean([c.score for c in tasks.values()]), abs=1e-5)
        assert mean.n == sum(c.n for c in tasks.values())
        assert mean.full == pytest.approx(np.mean([c.full for c in tasks.values()]), abs=1e-5)


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_the_published_squares(path: Path) -> None:
    """They name no place of a machine. Those of one run have the run's mean, task by task, in the file beside."""
    cells = {c.run_id: c for c in read_data(path.with_name(path.name.replace("-grid", ""))) if c.task == MEAN}
    squares = read_squares(path)
    runs = {s.run_id: [x for x in squares if x.run_id == s.run_id] for s in squares}
    assert set(runs) == set(cells)
    for run, own in runs.items():
        assert all(without_places(s.command) == s.command and 0 <= s.score <= 1 for s in own)
        assert sum(s.n for s in own) == cells[run].n
        assert np.average([s.score for s in own], weights=[s.n for s in own]) == pytest.approx(
            cells[run].score, abs=1e-5
        )
