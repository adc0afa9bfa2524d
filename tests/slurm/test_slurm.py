"""Sweeps on a real Slurm of one node (scripts/slurm_single_node.sh), through run.py as a user types it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "slurm_single_node.sh"

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which Slurm's commands work: that of SLURM_CONF if it is set, else a cluster of our own."""
    if "SLURM_CONF" in os.environ:
        yield dict(os.environ)
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no Slurm (SLURM_CONF is not set), and to start one takes root on Debian or Ubuntu")
    folder = Path(os.environ.get("SLURM_TEST_DIR") or tmp_path_factory.mktemp("cluster"))
    try:
        subprocess.run([SCRIPT, "start", folder], check=True, timeout=600)
        yield {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
    finally:
        subprocess.run([SCRIPT, "stop", folder], check=True, timeout=120)


Sweep = Any


@pytest.fixture
def sweep(slurm: dict[str, str], tmp_path: Path) -> Sweep:
    """sweep(*overrides) -> the finished process of run.py on Slurm; its runs are in tmp_path."""

    def call(*overrides: str, cluster: str = "slurm") -> subprocess.CompletedProcess[str]:
        command = [
            *(sys.executable, "run.py", "-m", f"cluster={cluster}", f"runs={tmp_path}", "method=keydiff"),
            *(
                "targets=[lukv,baselines,evals,tests]",
                "job._target_=tests.slurm.stand_in.Work",
            ),
        ]
        if cluster == "slurm":
            small = ("cpus_per_task=1", "mem_gb=1", "timeout_min=5", "signal_delay_s=20")
            command += [f"hydra.launcher.{setting}" for setting in small]
        return subprocess.run(
            [*command, *overrides], cwd=ROOT, env=slurm, capture_output=True, text=True, timeout=800, check=False
        )

    return call


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def results(runs: Path) -> dict[str, Any]:
    """Run id -> score, n of every finished run."""
    found = {p.parent.name: read(p) for p in runs.glob("*/result.json")}
    return {name: (result["score"], result["n"]) for name, result in found.items()}


def test_two_by_two_is_one_array_and_each_task_gets_its_gpu(sweep: Sweep, tmp_path: Path) -> None:
    done = sweep("method=keydiff,snapkv", "budget=0.1,0.2", "+job.samples=3", "+job.pace=1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs: 4 done, 0 skipped, 0 failed" in done.stdout
    jobs = {p.name for p in (tmp_path / ".submitit").glob("[0-9]*_*")}
    (array,) = {name.split("_")[0] for name in jobs}
    assert jobs == {f"{array}_{task}" for task in range(4)}
    spans: dict[str, list[tuple[float, float]]] = {}
    for result in tmp_path.glob("*/result.json"):
        attempt = read(result.parent / "attempt0.json")
        spans.setdefault(attempt["gpu"], []).append((attempt["start"], read(result)["end"]))
    assert set(spans) == {"0", "1"}
    for times in map(sorted, spans.values()):
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(times)), "a GPU was shared"
    again = sweep("method=keydiff,snapkv", "budget=0.1,0.2", "+job.samples=3", "+job.pace=1")
    assert "4 runs: 0 done, 4 skipped, 0 failed" in again.stdout


def test_a_failing_and_a_killed_task_do_not_harm_the_others_and_go_on_when_asked_again(
    sweep: Sweep, tmp_path: Path
) -> None:
    what = ("+job.fault=none,raise,kill", "+job.samples=6", "+job.pace=1", "budget=0.3")
    first = sweep(*what)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "3 runs: 1 done, 0 skipped, 2 failed" in first.stdout
    assert "this sample cannot be done" in first.stdout
    assert "no result.json: killed, or still running" in first.stdout
    assert len(results(tmp_path)) == 1
    second = sweep(*what)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "3 runs: 2 done, 1 skipped, 0 failed" in second.stdout
    assert len(set(results(tmp_path).values())) == 1
    killed = next(tmp_path.glob("*fault=kill*"))
    assert [line["id"] for line in map(json.loads, (killed / "samples.jsonl").open())] == [*"012345"]


def test_a_timeout_is_requeued_and_resumes_to_the_same_result(sweep: Sweep, tmp_path: Path) -> None:
    what = ("budget=0.4", "+job.samples=60")
    # Slurm sends the signal up to a minute early: each attempt gets half a minute, less the time to start.
    done = sweep(*what, "+job.pace=1", "hydra.launcher.timeout_min=1", "hydra.launcher.max_num_timeout=20")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = (p.parent for p in tmp_path.glob("*/result.json"))
    attempts = sorted(read(p)["done"] for p in folder.glob("attempt*.json"))
    assert len(attempts) >= 2
    assert 0 < attempts[-1] < 60
    lines = list(map(json.loads, (folder / "samples.jsonl").open()))
    assert [int(line["id"]) for line in lines] == list(range(60))
    assert len({line["pid"] for line in lines}) >= 2
    there = results(tmp_path)
    sweep(*what, "+job.pace=0", cluster="local")
    here = {k: v for k, v in results(tmp_path).items() if k not in there}
    assert list(here.values()) == list(there.values())


def test_a_partition_that_is_not_there_is_one_line(sweep: Sweep) -> None:
    done = sweep("budget=0.1", "+job.samples=1", "+job.pace=0", "hydra.launcher.partition=nowhere")
    assert done.returncode == 1
    *by_sbatch, ours = done.stderr.splitlines()
    assert ours.startswith("run.py: Slurm: ")
    assert "invalid partition specified: nowhere" in ours
    assert all(line.startswith("sbatch: ") for line in by_sbatch)
