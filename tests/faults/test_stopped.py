"""Runs and calibrations that are killed, stopped, or started twice: what is done is kept, and the end is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from evals.run.signals import finish_first
from tests.as_typed import ROOT, Command
from tests.faults.conftest import lines, only
from tests.faults.forked import KillAt, composed, end, job, noted, start, typed

TIMES = int(os.environ.get("LUKV_KILLS", "12"))
"""Kills at random moments, each for runs and for calibrations, on top of one at every write that must last."""


@pytest.fixture
def evaluation(short: list[str], command: Command, tmp_path: Path) -> list[str]:
    """A run of three samples and its reference; everything that it needs is loaded into this process."""
    args = [*(s for s in short if not s.startswith("reference")), "method=snapkv", "limit=3", "batch_size=1"]
    assert command(*args, f"runs={tmp_path}/warm") == 0
    return args


@pytest.fixture
def calibration(short: list[str], command: Command, tmp_path: Path) -> list[str]:
    """Two contexts, two scorers."""
    args = [
        *(s for s in short if not s.startswith(("benchmark", "reference"))),
        *("job=calibrate", "job.scorers=[keydiff,random]", "job.oracle.horizon=2"),
        *("calibration=file", f"calibration.benchmark.data={tmp_path}/questions.jsonl", "calibration.contexts=2"),
    ]
    assert command(*args, f"runs={tmp_path}/warm") == 0
    return args


def outcome(runs: Path) -> dict[str, Any]:
    """All that a finished folder says, without times, dates and memory."""
    found: dict[str, Any] = {}
    for folder in sorted(path for path in runs.iterdir() if path.is_dir()):
        result = json.loads((folder / "result.json").read_text())
        found[folder.name] = {k: v for k, v in result.items() if k not in ("time", "memory")}
        if (folder / "samples.jsonl").exists():
            found[f"{folder.name} samples"] = lines(folder)
        found[f"{folder.name} files"] = sorted(path.name for path in folder.glob("tables/*"))  # figures too
        for path in sorted(folder.glob("tables/*.safetensors")):
            arrays = load_file(path)
            found[f"{folder.name} {path.name}"] = {name: a.tobytes() for name, a in arrays.items()}
        assert not [path for path in folder.rglob("*") if path.name.endswith(".tmp")]
        assert not (folder / "error.json").exists()
    return found


def kill_everywhere(args: list[str], tmp_path: Path, times: int) -> Counter[str]:
    """Kill at every event (appends also torn), then at random moments, again and again in one folder; each time the
    same command must end as if nothing had been. -> how often each event was the last."""
    log, notes, run = tmp_path / "log", tmp_path / "notes", composed(*args)
    begin = time.perf_counter()
    assert end(start(log, job(run, tmp_path / "whole"), KillAt(notes))) == 0, log.read_text()
    lasts = time.perf_counter() - begin
    expected, events = outcome(tmp_path / "whole"), noted(notes)
    hit: Counter[str] = Counter()
    torn = [(n, True) for n, name in enumerate(events, 1) if name == "samples.jsonl written"]
    for number, (n, tear) in enumerate([*((n, False) for n in range(1, len(events) + 1)), *torn]):
        own = job(run, tmp_path / f"event{number}")
        notes.unlink(missing_ok=True)
        assert end(start(log, own, KillAt(notes, n, tear))) == -signal.SIGKILL, log.read_text()
        assert noted(notes)[-1] == events[n - 1]
        hit[events[n - 1] + (", torn" if tear else "")] += 1
        assert end(start(log, own)) == 0, log.read_text()
        assert outcome(tmp_path / f"event{number}") == expected, (n, events[n - 1])
    draw, round_, killed = random.Random(0), 0, 0
    while killed < times:
        round_ += 1
        own = job(run, tmp_path / f"random{round_}")
        while killed < times:
            notes.unlink(missing_ok=True)
            process = start(log, own, KillAt(notes))
            time.sleep(draw.uniform(0, lasts))
            os.kill(process, signal.SIGKILL)
            code = end(process)
            if code == 0:  # it had ended before: this machine is faster now than when it was measured
                lasts *= 0.7
                break
            lasts *= 1.1
            assert code == -signal.SIGKILL, log.read_text()
            killed += 1
            hit[f"at random, after: {(noted(notes) or ['nothing'])[-1]}"] += 1
        assert end(start(log, own)) == 0, log.read_text()
        assert outcome(tmp_path / f"random{round_}") == expected
    print(f"\n{sum(hit.values())} kills:", *(f"{n:4} {name}" for name, n in sorted(hit.items())), sep="\n  ")
    return hit


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_run_killed_at_every_write_and_at_random(evaluation: list[str], tmp_path: Path) -> None:
    hit = kill_everywhere(evaluation, tmp_path, TIMES)
    names = {name.split(" ")[0] for name in hit}
    assert {"config.yaml", "run.json", "samples.jsonl", "result.json"} <= names
    assert sum(hit.values()) >= 30 + TIMES


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_calibration_killed_at_every_write_and_at_random(calibration: list[str], tmp_path: Path) -> None:
    hit = kill_everywhere(calibration, tmp_path, TIMES)
    names = {name.split(" ")[0] for name in hit}
    assert {"config.yaml", "run.json", "state.safetensors", "keydiff.safetensors", "result.json"} <= names
    assert sum(hit.values()) >= 20 + TIMES


def test_a_run_killed_in_the_middle(evaluation: list[str], tmp_path: Path) -> None:
    """The fast form of the above: once in an append, torn, and once before the result is in place."""
    log, notes, run = tmp_path / "log", tmp_path / "notes", composed(*evaluation)
    assert end(start(log, job(run, tmp_path / "runs"), KillAt(notes))) == 0, log.read_text()
    expected, events = outcome(tmp_path / "runs"), noted(notes)
    for name in ("samples.jsonl written", "result.json synced"):
        n = [number for number, event in enumerate(events, 1) if event == name][1]
        own = job(run, tmp_path / name.split(".")[0])
        assert end(start(log, own, KillAt(notes, n, tear=True))) == -signal.SIGKILL
        assert end(start(log, own)) == 0, log.read_text()
        assert outcome(tmp_path / name.split(".")[0]) == expected


def wait_for(path: Path, folder: Path) -> None:
    """Until a run in `folder` has written something to the file of that name."""
    until = time.monotonic() + 120
    while not any(found.stat().st_size for found in folder.glob(f"*/{path}")):
        assert time.monotonic() < until
        time.sleep(0.002)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_finishes_the_batch_at_hand(number: signal.Signals, evaluation: list[str], tmp_path: Path) -> None:
    log, slow = tmp_path / "log", [*evaluation, "reference=null", "limit=6"]
    assert end(start(log, job(composed(*slow), tmp_path / "whole"))) == 0
    process = start(log, lambda: typed(*slow))
    wait_for(Path("samples.jsonl"), tmp_path / "runs")
    os.kill(process, number)
    assert end(process) == 130
    said = log.read_text()
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "run.py: stopped. What is done is kept: the same command goes on from there"
    folder = only(tmp_path / "runs")
    assert not (folder / "result.json").exists()
    assert 1 <= len(lines(folder)) < 6
    assert (folder / "samples.jsonl").read_text().endswith("\n")
    assert end(start(log, lambda: typed(*slow))) == 0
    assert outcome(tmp_path / "runs") == outcome(tmp_path / "whole")


def test_a_second_signal_does_not_wait() -> None:
    reached = []

    def interrupted() -> None:
        with finish_first("the batch at hand"):
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("after the first")
            os.kill(os.getpid(), signal.SIGINT)
            reached.append("after the second")

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached == ["after the first"]
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_a_signal_is_raised_at_the_end_of_the_block(capsys: pytest.CaptureFixture[str]) -> None:
    done = []

    def interrupted() -> None:
        with finish_first("the batch at hand"):
            os.kill(os.getpid(), signal.SIGINT)
            done.append("batch")
        done.append("next")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert done == ["batch"]
    assert capsys.readouterr().err == "run.py: stops after the batch at hand; once more: at once\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_real_process_is_stopped(number: signal.Signals, evaluation: list[str], tmp_path: Path) -> None:
    command = [sys.executable, "run.py", *evaluation, "reference=null", "limit=6"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(Path("samples.jsonl"), tmp_path / "runs")
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 130)
    assert "Traceback" not in err
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert len(lines(only(tmp_path / "runs"))) == 6


def test_two_processes_on_one_folder(
    evaluation: list[str], command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is refused while the first lives, even stopped; a lock that a dead one leaves is taken over."""
    args = [*evaluation, "reference=null", "limit=6"]
    first = start(tmp_path / "log", lambda: typed(*args))
    wait_for(Path("samples.jsonl"), tmp_path / "runs")
    os.kill(first, signal.SIGSTOP)
    assert command(*args) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"is being written by process {first} on " in line
    assert line.startswith("run.py: ")
    os.kill(first, signal.SIGKILL)
    assert end(first) == -signal.SIGKILL
    assert (only(tmp_path / "runs") / ".lock").exists()
    assert command(*args) == 0
    assert len(lines(only(tmp_path / "runs"))) == 6


def test_two_runs_that_share_a_reference_wait_for_it(evaluation: list[str], tmp_path: Path) -> None:
    """Two methods at once: both want the full cache's run; it is made once and both end."""
    runs = {method: composed(*evaluation, f"method={method}") for method in ("snapkv", "keydiff")}
    processes = [start(tmp_path / f"log{name}", job(run, tmp_path / "runs")) for name, run in runs.items()]
    assert [end(process) for process in processes] == [0, 0], (tmp_path / "logkeydiff").read_text()
    names = sorted(path.name.split("__")[1] for path in (tmp_path / "runs").iterdir())
    assert names == ["full", "keydiff", "snapkv"]
    for folder in (tmp_path / "runs").iterdir():
        assert len(lines(folder)) == 3


def test_the_clock_may_jump(
    evaluation: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours back and forth between any two looks at it: times stay positive and small."""
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 4e9))
    assert command(*evaluation) == 0
    for folder in (tmp_path / "runs").iterdir():
        for line in (folder / "samples.jsonl").read_text().splitlines():
            times = json.loads(line)["times"]
            assert all(0 <= times[name] < 600 for name in ("prefill_s", "ttft_s", "tpot_s", "total_s"))
        assert 0 < json.loads((folder / "result.json").read_text())["time"]["total_s"] < 600
