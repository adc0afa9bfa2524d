"""A sweep on (a stand-in of) Slurm, whose logs lie wherever the user says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from evals.run.slurm import find_arrays, quote_log
from tests.as_typed import ROOT
from tests.cli.fake_slurm import install


def test_a_task_that_fails_before_it_begins(tmp_path: Path) -> None:
    """Slurm calls it completed. It is failed with its reason and its log; the other is done."""
    logs, work = tmp_path / "else[where]" / "%j", tmp_path / "work"
    work.mkdir()
    command = [
        *(sys.executable, str(ROOT / "run.py"), "-m", "cluster=slurm", "method=streaming", "budget=0.1,0.2"),
        *("targets=[lukv,baselines,evals,tests]", "job._target_=tests.cli.quick_job.Quick", f"runs={tmp_path}/runs"),
        *("hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1", f"hydra.launcher.submitit_folder='{logs}'"),
    ]
    path = f"{install(tmp_path / 'slurm')}:{os.environ['PATH']}"
    done = subprocess.run(
        command, cwd=work, env={**os.environ, "PATH": path}, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 runs: 1 done, 0 skipped, 1 failed" in done.stdout, done.stdout + done.stderr
    assert f"  failed  it cannot begin ({tmp_path}/else[where]/100_0/100_0_0_log.err)" in done.stdout
    assert len(list(tmp_path.glob("runs/*/result.json"))) == 1


@pytest.mark.parametrize(
    ("tags", "job"), [(tags, job) for tags in ("%j", "x_%j_%t", "") for job in ("7_1", "7")] + [("%A/%a", "7_1")]
)
def test_logs_are_found_under_any_name(tags: str, job: str, tmp_path: Path) -> None:
    from submitit.core.utils import JobPaths

    logs = str(tmp_path / "[a]*" / tags)
    paths = JobPaths(logs, job)
    paths.folder.mkdir(parents=True)
    assert find_arrays(logs) == set()
    paths.submitted_pickle.touch()
    assert find_arrays(logs) == {"7"}
    paths.stderr.write_text("warning: x\nrun.py: the reason\nlater\n\n")
    assert quote_log(logs, "7", 1) == f"the reason ({paths.stderr})"
