"""A sweep prefills each context once: what its runs write is what they would have written by themselves."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from baselines.keydiff import KeyDiff
from evals.jobs import decode
from evals.run import summary
from evals.run.tracking import Tracker, Wandb
from tests.as_typed import ROOT, Command

METHODS = ["method=snapkv,keydiff,adakv,full", "budget=0.1,0.4", "model.dtype=float64"]
RUNS = 7  # snapkv, keydiff, adakv at two budgets, and the reference


def written(runs: Path) -> dict[str, list[dict]]:
    """The lines of each run, but for their times."""
    found = {}
    for path in sorted(runs.glob("*/samples.jsonl")):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        found[path.parent.name] = sorted(({**line, "times": 0} for line in lines), key=lambda line: line["id"])
    return found


def results(runs: Path) -> dict[str, dict]:
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(runs.glob("*/result.json"))}


def but_for_costs(result: dict) -> dict:
    return {**result, "time": 0, "memory": 0}


@pytest.fixture
def prefills(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many contexts each call of compress was given."""
    calls: list[int] = []
    compress = decode.compress

    def counted(model, rows, **options):
        calls.append(len(rows))
        return compress(model, rows, **options)

    monkeypatch.setattr(decode, "compress", counted)
    return calls


@pytest.fixture
def elsewhere(settings: list[str], tmp_path: Path) -> Callable[[str], list[str]]:
    """The same settings with another folder of runs."""
    return lambda name: [*(s for s in settings if not s.startswith("runs=")), f"runs={tmp_path}/{name}"]


def test_equals_separate_runs(
    command: Command, elsewhere: Callable[[str], list[str]], tmp_path: Path, prefills: list[int]
) -> None:
    assert command("-m", *elsewhere("shared"), *METHODS) == 0
    assert prefills == [2, 2]  # two tasks, a batch of two contexts each
    prefills.clear()
    assert command("-m", *elsewhere("alone"), *METHODS, "share_prefill=false") == 0
    assert prefills == [2, 2] * RUNS
    shared, alone = written(tmp_path / "shared"), written(tmp_path / "alone")
    assert len(shared) == RUNS
    assert shared == alone
    together, separate = results(tmp_path / "shared"), results(tmp_path / "alone")
    assert list(map(but_for_costs, together.values())) == list(map(but_for_costs, separate.values()))
    for result in together.values():  # no run's own latency
        assert (result["time"]["shared"], result["time"]["batch"]) == (RUNS, 2)
        assert result["time"]["ttft_s"] is result["time"]["tpot_s"] is result["time"]["prefill_s"] is None
        assert result["time"]["total_s"] > 0
    assert all(r["time"]["shared"] == 1 and r["time"]["ttft_s"] > 0 for r in separate.values())


def test_a_run_and_its_reference_share_the_prefill_alone(
    command: Command, settings: list[str], tmp_path: Path, prefills: list[int]
) -> None:
    assert command(*settings, "method=snapkv") == 0
    assert prefills == [2, 2]
    assert len(results(tmp_path)) == 2
    assert all(r["time"]["shared"] == 1 and r["time"]["tpot_s"] > 0 for r in results(tmp_path).values())


def test_goes_on_from_any_state(command: Command, settings: list[str], tmp_path: Path, prefills: list[int]) -> None:
    """Finished, torn, hardly begun, not begun: the same lines as without a stop; nothing done is done again."""
    sweep = ["-m", *settings, *METHODS, "batch_size=1"]
    assert command(*sweep) == 0
    whole, runs = written(tmp_path), sorted(results(tmp_path))
    before = {run: (tmp_path / run / "samples.jsonl").read_text() for run in runs}
    for kept, run in enumerate(runs[:5]):
        (tmp_path / run / "result.json").unlink()
        lines = before[run].splitlines(keepends=True)
        (tmp_path / run / "samples.jsonl").write_text("".join(lines[:kept]) + ("".join(lines[kept:])[:30]))
    for file in (tmp_path / runs[5]).iterdir():
        file.unlink()
    untouched = (tmp_path / runs[6] / "samples.jsonl").stat()
    prefills.clear()
    assert command(*sweep) == 0
    assert sum(prefills) == 4
    assert written(tmp_path) == whole
    assert (tmp_path / runs[6] / "samples.jsonl").stat() == untouched
    for kept, run in enumerate(runs[:5]):
        text = (tmp_path / run / "samples.jsonl").read_text()
        assert text.startswith("".join(before[run].splitlines(keepends=True)[:kept]))
        assert len(text.splitlines()) == 4


def test_a_method_that_fails_fails_alone(
    command: Command,
    elsewhere: Callable[[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prefills: list[int],
) -> None:
    """One cannot be built (no budget table), one fails at work, first or last in the group; then it is repaired."""
    score = KeyDiff.score
    monkeypatch.setattr(KeyDiff, "score", lambda self, layer: score(self, layer) * torch.nan)
    for methods in ("keydiff,snapkv,lukv", "snapkv,lukv,keydiff"):
        args = ["-m", *elsewhere(methods.split(",")[0]), f"method={methods}", "budget=0.2,0.5"]
        prefills.clear()
        assert command(*args) == 2
        out, err = capsys.readouterr()
        assert "6 runs: 2 done, 0 skipped, 4 failed" in out
        assert prefills == [2, 2]
        assert [line.split(":")[0] for line in err.splitlines() if "NaN" in line] == ["run.py"]  # once for both budgets
        assert sum("job=calibrate" in line for line in err.splitlines()) == 1
        assert "Traceback" not in err
    monkeypatch.setattr(KeyDiff, "score", score)
    assert command(*args) == 2  # lukv's tables are still missing
    assert "6 runs: 2 done, 2 skipped, 2 failed" in capsys.readouterr().out


def test_another_process_has_one_of_the_runs(
    command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *settings, "method=snapkv,keydiff"]
    assert command(*sweep) == 0
    keydiff = next(tmp_path.glob("*keydiff*"))
    for path in tmp_path.glob("*/result.json"):
        path.unlink()
    with (keydiff / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert command(*sweep) == 1
    assert "2 runs: 1 done, 0 skipped, 1 failed" in capsys.readouterr().out
    assert len(results(tmp_path)) == 2
    assert command(*sweep) == 0


def test_out_of_memory(
    command: Command, elsewhere: Callable[[str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too little for many contexts, then for many methods: each context and method alone says the same."""
    sweep = ["method=snapkv,adakv", "budget=0.1", "model.dtype=float64"]
    assert command("-m", *elsewhere("plenty"), *sweep) == 0
    compress = decode.compress

    def scarce(model, rows, observe=(), **others):
        if len(rows) > 1 or observe:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return compress(model, rows, observe=observe, **others)

    monkeypatch.setattr(decode, "compress", scarce)
    assert command("-m", *elsewhere("scarce"), *sweep) == 0
    assert written(tmp_path / "scarce") == written(tmp_path / "plenty")


def test_every_run_is_tracked_once_and_one_at_a_time(
    command: Command, settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, str]] = []

    class Listed(Tracker):
        def __init__(self, name: str) -> None:
            self.name = name

        def sample(self, line: dict) -> None:
            events.append((self.name, line["id"]))

        def finish(self, result: dict, made: object = ()) -> None:
            assert result["run_id"] == self.name
            events.append((self.name, "finish"))

    @contextmanager
    def follow(self: Wandb, folder: Path, done: object = ()) -> Iterator[Tracker]:
        events.append((folder.name, "open"))
        yield Listed(folder.name)
        events.append((folder.name, "close"))

    monkeypatch.setattr(Wandb, "follow", follow)
    assert command("-m", *settings, "method=snapkv,keydiff", "budget=0.1,0.4", "track=wandb") == 0
    runs = list(dict.fromkeys(run for run, _ in events))
    assert set(runs) == set(results(tmp_path))
    for run in runs:
        mine = [what for name, what in events if name == run]
        assert (mine[0], mine[-2:], len(mine)) == ("open", ["finish", "close"], 7)
    assert [run for run, _ in events] == [run for run in runs for _ in range(7)]


@pytest.mark.slow
def test_killed_at_any_moment(command: Command, elsewhere: Callable[[str], list[str]], tmp_path: Path) -> None:
    """kill -9 again and again, at later and later moments: at last the samples are those of a sweep left alone."""
    sweep = [*METHODS, "batch_size=1", "limit=6"]
    killed = 0
    for delay in range(4, 90, 2):
        p = subprocess.Popen(
            [sys.executable, "run.py", "-m", *elsewhere("killed"), *sweep],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            code = p.wait(timeout=delay)
        except subprocess.TimeoutExpired:
            os.kill(p.pid, signal.SIGKILL)
            p.wait()
            killed += 1
            time.sleep(0.1)
            continue
        assert code == 0
        break
    assert killed
    assert command("-m", *elsewhere("alone"), *sweep) == 0
    assert written(tmp_path / "killed") == written(tmp_path / "alone")
    assert len(results(tmp_path / "killed")) == RUNS


def test_tables_of_two_calibrations_are_two_methods_of_one_sweep(
    command: Command, settings: list[str], tmp_path: Path, prefills: list[int]
) -> None:
    """One prefill, a run each; a method that reads no table is one run whatever model.tables says."""
    small = ["calibration.benchmark.length=1200", "calibration.benchmark.tasks=[niah_single_1]", "job.save=true"]
    where = [s for s in settings if not s.startswith(("benchmark", "limit"))]
    folders = [str(tmp_path / "tables" / name) for name in ("one", "two")]
    for contexts, folder in enumerate(folders, 1):
        made = ["job=calibrate", "scorer=utility_probe", f"model.tables={folder}", f"calibration.contexts={contexts}"]
        assert command(*made, *where, *small, "job.oracle.horizon=3") == 0
    sweep = ["-m", *settings, f"model.tables={','.join(folders)}", "budget=0.2"]
    assert command(*sweep, "method=lukv_plus") == 0
    assert prefills == [2, 2]
    found = [path.parent.name for path in sorted(tmp_path.glob("*lukv_plus*/result.json"))]
    assert len(found) == 2
    inputs = [json.loads((tmp_path / name / "run.json").read_text())["inputs"] for name in found]
    assert inputs[0] != inputs[1]
    for name, folder in zip(found, folders, strict=True):
        assert command(*settings, f"model.tables={folder}", "budget=0.2", "method=lukv_plus") == 0, name
    assert [path.parent.name for path in sorted(tmp_path.glob("*lukv_plus*/result.json"))] == found
    assert command(*sweep, "method=keydiff") == 0
    assert len(list(tmp_path.glob("*keydiff*/result.json"))) == 1


def read_matrix(out: str) -> dict[str, list[str]]:
    """First word of each row -> the rest, of the tables that a sweep ends with."""
    rows = (line.split() for line in out.partition("95% interval\n")[2].splitlines())
    return {row[0]: row[1:] for row in rows if row}


def test_it_ends_with_a_matrix_of_its_scores(
    command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of new and finished runs alike; each run's own table only if that is asked for."""
    sweep = ["-m", *settings, "method=snapkv,lukv,streaming", "budget=0.4,0.1"]
    assert command(*sweep) == 2  # LU-KV has no table for this model
    out = capsys.readouterr().out
    head, *lines = out.strip().splitlines()
    model = results(tmp_path)[next(iter(results(tmp_path)))]["experiment"]
    assert head == f"{model}: mean of 2 tasks (n = 4) in per cent, 95% interval"
    assert lines[0].split() == ["method", "kept", "10%", "kept", "40%"]
    assert lines[2].split()[0] == "full"
    assert (
        lines[-1] == f"in {tmp_path}/; each task, differences, figures and a page: python report.py --runs {tmp_path}"
    )
    assert lines[-2] == "6 runs: 4 done, 0 skipped, 2 failed"
    assert " and 1 more  failed  no budget table at " in lines[-3]
    assert "kept share" not in out
    found = read_matrix(out)
    for folder, result in results(tmp_path).items():
        label, budget = folder.split("__")[1:3]
        low, high = (f"{100 * end:.1f}" for end in result["ci95"])
        cells = [f"{100 * result['score']:.1f}", f"({low}-{high})"]
        column = {"b0.1": slice(0, 2), "b0.4": slice(2, 4)}.get(budget)
        assert (found[label][column] if column else found[label]) == (cells if column else 2 * cells)
    assert command(*sweep, "verbose=true") == 2
    out = capsys.readouterr().out
    assert (out.count("already done"), out.count("kept share")) == (4, 4)
    assert read_matrix(out)["snapkv"] == found["snapkv"]


def test_a_full_cache_that_was_asked_other_prompts_is_not_in_it(
    command: Command, settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by a chat template that says the date: all settings are the same."""
    sweep = ["-m", *settings, "method=random", "budget=0.1,0.4"]
    assert command(*sweep) == 0
    assert "\nfull " in capsys.readouterr().out
    (full,) = tmp_path.glob("*__full__*/run.json")
    about = json.loads(full.read_text())
    about["prompts"]["niah_single_1 v1"] = "0" * 16
    full.write_text(json.dumps(about))
    assert command(*sweep) == 0
    out = capsys.readouterr().out
    assert "was asked other prompts in niah_single_1 v1" in out
    assert "\nrandom " in out
    assert "\nfull " not in out


def test_a_matrix_of_each_model_and_seed(
    command: Command, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("-m", *settings, "method=random", "budget_tokens=9,20", "seed=0,1", "reference=null") == 0
    out = capsys.readouterr().out
    assert out.count("9 tokens") == out.count("20 tokens") == out.count("95% interval") == 2
    assert "full" not in out


def test_a_matrix_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["method", *(f"kept {i}%" for i in range(7))], ["x" * 20, *["100.0 (90.0-100.0)"] * 7]]
    wide = summary.fit_terminal(rows)
    assert len(wide.splitlines()) == 3
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    for columns, tables in ((200, 1), (80, 3), (50, 7), (10, 7)):
        monkeypatch.setenv("COLUMNS", str(columns))
        shown = summary.fit_terminal(rows)
        assert shown.count("method") == tables
        assert columns < 40 or max(map(len, shown.splitlines())) <= columns
        assert shown.count("kept") == 7
