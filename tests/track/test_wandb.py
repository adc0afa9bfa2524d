"""Tracking with W&B, offline: what was written is read back with W&B's own reader."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals.differences import FEWEST
from evals.run.beside import compare_with_full
from evals.run.dashboard import make_dashboard
from evals.run.tags import name_group
from evals.run.tracking import Tracker, Wandb, main, make_wandb_id, summarize

TASKS = ("niah_single_1", "vt")
HEADS = [[0.1, 0.3], [0.2, 0.2], [0.4, 0.0]]
RESULT: dict[str, Any] = {
    "score": 0.75,
    "ci95": [0.6, 0.9],
    "tasks": {"niah_single_1": {"score": 1.0, "n": 2}, "vt": {"score": 0.5, "n": 2}},
    "budget": {"kept_share": 0.2, "cache_bytes": 2000.0, "full_cache_bytes": 10000.0, "heads": HEADS},
    "time": {"ttft_s": 0.03, "tpot_s": 0.004},
    "memory": {"peak_bytes": 123456},
    "model": "tiny",
}
SAMPLES = [
    {
        **{"id": f"{task}-{i}", "task": task, "question": "Which?", "prediction": "<b>7</b>", "references": ["7", "8"]},
        "score": 1.0 - 0.5 * i * j,
    }
    for j, task in enumerate(TASKS)
    for i in range(2)
]


TAGS = ["lukv", "keydiff", "TableAllocator", "budget=0.2", "ruler-512"]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No key, and nothing of the user's own W&B files is read or written."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished run."""
    folder = tmp_path / "tiny__lukv-keydiff__b0.2__ruler-512__s0"
    folder.mkdir()
    table = tmp_path / "keydiff.safetensors"
    table.write_bytes(b"a table")
    config = {
        "method": "lukv",
        "model": {"name": "tiny"},
        "benchmark": {"_target_": "evals.ruler.Ruler", "length": 512},
        "allocator": {"_target_": "lukv.budgets.table.TableAllocator", "path": str(table)},
        "job": {"_target_": "evals.jobs.job.Evaluate"},
        "scorer": {"_target_": "baselines.keydiff.KeyDiff", "name": "keydiff"},
        "budget": 0.2,
        "seed": 0,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run.json").write_text(json.dumps({"run_id": folder.name, "config_hash": "0123"}))
    (folder / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in SAMPLES))
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def runs(folder: Path) -> list[Path]:
    """The offline runs that W&B has written for a run folder, in the order of their start."""
    return sorted((folder / "wandb").glob("offline-run-*"), key=lambda p: p.stat().st_ctime_ns)


def alone(command: list[str], environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run as a user would: not attached to the W&B service of this process."""
    own = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"} | dict(environment or {})
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=200, check=False)


def inspect(run: Path, *options: str) -> str:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(run)]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, check=True).stdout


def overview(run: Path) -> Any:
    return json.loads(inspect(run, "--summary"))


def records(run: Path, kind: str) -> Iterator[Any]:
    for line in inspect(run).splitlines():
        record = json.loads(line)
        if record.get("type") == kind:
            yield record[kind]


def test_a_finished_run_is_logged_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["log", str(folder)]) == 0
    (run,) = runs(folder)
    assert capsys.readouterr().err == f"W&B: wandb sync {run}\n"
    seen = overview(run)
    assert seen["state"] == "finished"
    assert seen["run_id"] == make_wandb_id({"run_id": folder.name, "config_hash": "0123"})
    assert (seen["name"], seen["project"], seen["tags"]) == (folder.name, "lukv", TAGS)
    assert seen["config"]["budget"] == 0.2
    assert seen["config"]["job"] == "evaluate"
    assert seen["config"]["run"]["scorer"] == "keydiff"
    assert seen["step"] == len(SAMPLES)
    found = seen["summary"]
    assert {k: found[k] for k in summarize(RESULT)} == summarize(RESULT)
    assert found["running/score"] == 0.875
    assert found["predictions"]["nrows"] == len(SAMPLES)
    assert found["heads/kept_share"]["_type"] == "image-file"
    assert found["tasks_table"]["nrows"] == len(TASKS)
    (about,) = records(run, "run")
    assert about["run_group"] == "tiny__lukv-keydiff__b0.2__ruler-512"
    assert about["job_type"] == "evaluate"
    table = next((run / "files" / "media" / "table").glob("predictions*.json"))
    assert json.loads(table.read_text())["data"][0][:4] == [
        *("niah_single_1-0", "niah_single_1", "Which?", "<b>7</b>"),
    ]


def write_full(folder: Path, samples: list[dict[str, Any]]) -> None:
    """The full cache's finished run beside it."""
    full = folder.with_name("tiny__full__ruler-512__s0")
    full.mkdir()
    (full / "run.json").write_text(json.dumps({"run_id": full.name, "config_hash": "4567"}))
    (full / "samples.jsonl").write_text("".join(json.dumps(s) + "\n" for s in samples))
    (full / "result.json").write_text(json.dumps({"config": {"budget": None, "budget_tokens": None}}))


def test_the_full_cache_beside_it_is_part_of_the_summary(folder: Path) -> None:
    """The mean of tasks of which one has more samples than the other: 0.75 and 0.25 of 1."""
    samples = [*SAMPLES, {**SAMPLES[0], "id": "niah_single_1-2", "score": 0.0}]
    write_full(folder, [{**s, "score": 0.5 if s["task"] == "vt" else 1.0} for s in samples])
    mine = (2 / 3 + 0.75) / 2
    assert compare_with_full(folder, RESULT, samples) == pytest.approx(
        {"score/full": 0.75, "score/minus_full": mine - 0.75}
    )
    assert compare_with_full(folder, RESULT, SAMPLES) == {}, "the full cache has a sample more"
    assert compare_with_full(folder, {**RESULT, "experiment": "another"}, samples) == {}


def test_the_difference_has_the_interval_of_a_report(folder: Path) -> None:
    """Six samples are enough for one (above: two are not). All lose a half but one, which loses all."""
    samples = [{**SAMPLES[0], "id": f"niah_single_1-{i}", "score": 0.5 * (i > 0)} for i in range(FEWEST)]
    write_full(folder, [{**s, "score": 1.0} for s in samples])
    found = compare_with_full(folder, RESULT, samples)
    low, high = (found[f"score/minus_full_ci95_{end}"] for end in ("low", "high"))
    assert -1 <= low < found["score/minus_full"] < high <= -0.5


def test_runs_of_several_seeds_are_one_group() -> None:
    assert name_group("tiny__lukv__b0.2__ruler__s0", 0) == name_group("tiny__lukv__b0.2__ruler__s1", 1)
    long = [name_group(f"{'x' * 150}{i}__s0", 0) for i in (1, 2)]
    assert len(set(long)) == 2
    assert max(map(len, long)) <= 128


@pytest.mark.slow
def test_a_killed_run_goes_on_under_the_same_id(folder: Path) -> None:
    killed = f"""
import os, json, time
from pathlib import Path
from evals.run.tracking import Wandb
folder = Path({str(folder)!r})
lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
with Wandb(mode="offline", system_metrics=False).follow(folder) as tracker:
    tracker.sample(lines[0])
    tracker.sample(lines[1])
    written = next(folder.glob("wandb/offline-run-*")) / "run-{{}}.wandb".format(tracker._run.id)
    while b"running/score" not in written.read_bytes():  # W&B's own process writes some seconds later
        time.sleep(0.5)
    os._exit(9)
"""
    assert alone([sys.executable, "-c", killed]).returncode == 9
    with Wandb(mode="offline", system_metrics=False).follow(folder, done=SAMPLES[:2]) as tracker:
        for line in SAMPLES[2:]:
            tracker.sample(line)
        tracker.finish(RESULT)
    first, second = map(overview, runs(folder))
    assert first["run_id"] == second["run_id"]
    assert first["step"] >= 1  # W&B holds the last line back until the next one comes
    assert second["state"] == "finished"
    assert second["summary"]["running/score"] == 0.875
    steps = [h["item"]["_step"] for h in records(runs(folder)[1], "history")]
    assert steps == [3, 4]


def test_the_table_that_calibrate_makes_is_the_one_that_evaluate_uses(folder: Path, tmp_path: Path) -> None:
    settings = Wandb(mode="offline", system_metrics=False)
    with settings.follow(folder) as tracker:
        tracker.finish(RESULT)
    (use,) = [a for a in records(runs(folder)[-1], "artifact") if a["type"] == "budget-table"]
    assert use["use_after_commit"] is True
    config = yaml.safe_load((folder / "config.yaml").read_text())
    job = {"_target_": "evals.jobs.job.Calibrate", "data": {"name": "ruler-512"}}
    config |= {"job": job, "allocator": None, "benchmark": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "tables").mkdir()
    (tmp_path / "keydiff.safetensors").rename(folder / "tables" / "keydiff.safetensors")
    with settings.follow(folder) as tracker:
        tracker.finish({"status": "done"})
    (made,) = [a for a in records(runs(folder)[-1], "artifact") if a["type"] == "budget-table"]
    assert not made.get("use_after_commit")
    assert (made["name"], made["digest"]) == (use["name"], use["digest"])
    assert made["name"] == "budgets-tiny-keydiff"


def test_a_run_that_fails_is_a_failed_run(folder: Path) -> None:
    def interrupted() -> None:
        with Wandb(mode="offline", system_metrics=False).follow(folder) as tracker:
            tracker.sample({"id": "x", "task": "vt", "error": "out of memory"})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    seen = overview(runs(folder)[-1])
    assert seen["state"] == "failed"
    assert "running/score" not in seen["summary"]


def test_a_service_that_dies_stops_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, not an exception; the next run has a service of its own."""
    program = f"""
import os, signal, subprocess
from pathlib import Path
from evals.run.tracking import Wandb, log, tell_all
folder, settings = Path({str(folder)!r}), Wandb(mode="offline", system_metrics=False)
with settings.follow(folder) as tracker:
    found = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    (service,) = (line.split()[0] for line in found.stdout.splitlines() if "wandb" in line)
    os.kill(int(service), signal.SIGKILL)
    os.waitpid(int(service), 0)
    tell_all(tracker, folder)
assert tracker.lost is not None
log(folder, settings)
"""
    done = alone([sys.executable, "-c", program])
    assert done.returncode == 0, done.stderr
    line, second = done.stderr.splitlines()
    assert second == f"W&B: wandb sync {runs(folder)[-1]}"
    assert line.startswith("W&B is lost (")
    assert line.endswith(f"The run goes on without; afterwards: python -m evals.run.tracking log {folder}")
    assert overview(runs(folder)[-1])["state"] == "finished"


NO_SERVER = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize("environment", [{}, pytest.param(NO_SERVER, marks=pytest.mark.slow)])
def test_online_without_key_or_server_is_one_line(folder: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "evals.run.tracking", "log", "--mode", "online", str(folder)]
    done = alone(command, environment)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("track: W&B: ")


def test_wrong_mode() -> None:
    with pytest.raises(ValueError, match=r"track\.mode=of is none of auto, online, offline"):
        Wandb(mode="of")


def test_an_unfinished_run_cannot_be_logged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "result.json").unlink()
    assert main(["log", str(folder)]) == 2
    assert capsys.readouterr().err.endswith("is not a finished run: it has no result.json\n")
    assert runs(folder) == []


def test_none_writes_nothing(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    tracker = Tracker()
    tracker.sample(SAMPLES[0])
    tracker.finish(RESULT)
    assert sorted(folder.rglob("*")) == before


def test_the_dashboard_shows_what_is_logged() -> None:
    pytest.importorskip("wandb_workspaces")
    view = json.loads(make_dashboard(None, "lukv", save=False))
    sections = {s["name"]: s["panels"] for s in view["spec"]["section"]["panelBankConfig"]["sections"]}
    assert list(sections) == ["Quality", "Cost", "Heads", "Progress"]
    text = json.dumps(sections)
    named = {w.split(":", 1)[-1] for w in text.split('"') if w.split(":", 1)[-1].startswith(("score/", "cost/"))}
    assert "score/mean" in named
    assert "cost/cache_share" in named
    assert named <= set(summarize(RESULT))
    assert "config:budget.value" in text


def test_the_dashboard_needs_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("wandb_workspaces")
    assert main(["dashboard"]) == 2
    assert capsys.readouterr().err.startswith("track: W&B: ")
