"""From calibrate to evaluate as a user types it, tracked offline: one makes the table that the other uses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.as_typed import ROOT
from tests.random_model import save
from tests.track.test_wandb import no_account, overview, records, runs

pytestmark = pytest.mark.slow
__all__ = ["no_account"]  # the fixture holds for these tests too


def run(*args: str) -> None:
    own = {k: v for k, v in os.environ.items() if k != "WANDB_SERVICE"}
    done = subprocess.run(
        [sys.executable, "run.py", *args], cwd=ROOT, env=own, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


def test_from_calibrate_to_evaluate(tmp_path: Path) -> None:
    model = [
        *("model=hf", f"model.path={save(tmp_path / 'random')}", f"model.tables={tmp_path}/tables"),
        *("track=wandb", "track.mode=offline", f"runs={tmp_path}/runs"),
    ]
    few = ["calibration.benchmark.length=1200", "calibration.benchmark.tasks=[niah_single_1]", "calibration.contexts=2"]
    run("job=calibrate", *model, *few, "job.oracle.horizon=3", "job.save=true")
    run("method=lukv", *model, "benchmark.length=1200", "benchmark.tasks=[niah_single_1]", "limit=2", "reference=null")
    run("job=latency", "method=lukv", *model, "job.lengths=[64,128]", "job.repeats=1", "job.new_tokens=2")
    folders = {kind: next((tmp_path / "runs").glob(f"*{kind}*")) for kind in ("calibrate", "ruler-1200__n2", "latency")}
    seen = {kind: runs(folder)[-1] for kind, folder in folders.items()}
    made, (used,) = (
        [a for a in records(seen[kind], "artifact") if a["type"] == "budget-table"]
        for kind in ("calibrate", "ruler-1200__n2")
    )
    (made,) = (a for a in made if a["name"] == used["name"])  # the calibration makes the curve, too
    assert made["digest"] == used["digest"]
    assert used["use_after_commit"]
    assert not made.get("use_after_commit")
    for kind, job in (("calibrate", "calibrate"), ("ruler-1200__n2", "evaluate"), ("latency", "latency")):
        (about,) = records(seen[kind], "run")
        assert about["job_type"] == job
        assert about["run_group"].startswith("random__")
    found = overview(seen["ruler-1200__n2"])["summary"]
    assert found["heads/kept_share"]["_type"] == "image-file"
    assert found["cost/cache_bytes"] > 0
    assert overview(seen["latency"])["summary"]["latency"]["nrows"] == 4
    assert next(records(seen["ruler-1200__n2"], "stats"), None), "no system metrics"
