"""Waiting for a sweep that Slurm runs, to its real end.

submitit's launcher gives up at the first task that Slurm calls lost, while the others still run. A task that is put
back into the queue is at times called lost although it succeeds later. A task that dies of an exception is called
completed. So the launcher's word counts for nothing: once it returns or gives up, we wait until Slurm has none of the
array's tasks left. What became of each run is then read from its folder, and where there is none, from its log.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from glob import escape
from itertools import takewhile
from pathlib import Path

from evals.run.sweep import Fault, Sweep
from lukv.conf import PACKAGE

POLL_S = 5.0


@contextmanager
def wait_for_tasks(sweep: Sweep) -> Iterator[None]:
    """Surround the launch of these runs. If they go to Slurm, the block ends when it has none of their tasks left.

    A run of which nothing is left gets a fault that quotes its log. Raises RuntimeError if Slurm did not take them.
    """
    if sweep.slurm_logs is None:
        yield
        return
    before = find_arrays(sweep.slurm_logs)
    # A task imports evals wherever the command was started.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    try:
        yield
    except RuntimeError as e:  # submitit's errors are of this kind
        if find_arrays(sweep.slurm_logs) == before:
            raise RuntimeError(f"Slurm: {' '.join(str(e).split())}") from e
    except KeyboardInterrupt:
        if mine := find_arrays(sweep.slurm_logs) - before:
            print(f"run.py: Slurm goes on with it. To stop it: scancel {' '.join(sorted(mine))}", file=sys.stderr)
        raise
    mine = find_arrays(sweep.slurm_logs) - before
    while has_tasks(mine):
        time.sleep(POLL_S)
    for p in sweep.planned:
        if mine and not p.run.folder.exists():
            sweep.faults[p.run.id] = Fault(1, quote_log(sweep.slurm_logs, min(mine), p.task))


def find_arrays(logs: str) -> set[str]:
    """Ids of the job arrays whose logs are in these folders. submitit leaves a file ID_TASK, or ID, of each job."""
    parts = Path(logs).expanduser().absolute().parts
    fixed = list(takewhile(lambda part: "%" not in part, parts))
    varied = ["*".join(map(escape, re.split("%[jtAa]", part))) for part in parts[len(fixed) :]]
    files = Path(*fixed).glob("/".join([*varied, "*_submitted.pkl"]))
    jobs = (re.fullmatch(r"(\d+)(_\d+)?_submitted\.pkl", file.name) for file in files)
    return {job[1] for job in jobs if job}


def quote_log(logs: str, array: str, task: int) -> str:
    """The last thing that a task said, and in which file. An array of one is a job without a task's number."""
    for job in (f"{array}_{task}", array):
        folder = logs
        for tag, value in (("%j", job), ("%t", "0"), ("%A", array), ("%a", str(task))):
            folder = folder.replace(tag, value)
        log = Path(folder).expanduser() / f"{job}_0_log.err"
        if log.exists():
            said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            ours = [line.removeprefix("run.py: ") for line in said if line.startswith("run.py: ")]
            return f"{[*said, *ours][-1] if said else 'left nothing behind'} ({log})"
    return f"left nothing behind, no log either: is {logs} on a disk that all nodes share?"


def has_tasks(ids: Set[str]) -> bool:
    """Whether Slurm has a task of these arrays that waits, runs or ends. True while Slurm is too busy to answer."""
    if not ids:
        return False
    command = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(sorted(ids))}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return True
    forgotten = "Invalid job id" in done.stderr  # over for so long that Slurm has dropped it
    return bool(done.stdout.strip()) or (done.returncode != 0 and not forgotten)
