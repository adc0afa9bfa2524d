"""Waiting for a sweep that Slurm runs, to its real end.

submitit's launcher gives up at the first task that Slurm calls lost, while the others still run. A task that is put
back into the queue is at times called lost although it succeeds later. A task that dies of an exception is called
completed. So the launcher's word counts for nothing: once it returns or gives up, we wait until Slurm has none of the
array's tasks left. What became of each run is then read from its folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

from evals.run.sweep import Fault, Sweep

POLL_S = 5.0


@contextmanager
def wait_for_tasks(sweep: Sweep) -> Iterator[None]:
    """Surround the launch of these runs. If they go to Slurm, the block ends when it has none of their tasks left.

    A run of which nothing is left gets a fault that names the logs. Raises RuntimeError if Slurm did not take them.
    """
    runs = [p.run for p in sweep.planned]
    folders = {run.folder.parent for run in runs}
    before = find_arrays(folders)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the launcher's exception and ends the process
    try:
        yield
    except RuntimeError as e:  # submitit's errors are of this kind
        if find_arrays(folders) == before:
            raise RuntimeError(f"Slurm: {' '.join(str(e).split())}") from e
    except KeyboardInterrupt:
        if mine := find_arrays(folders) - before:
            print(f"run.py: Slurm goes on with it. To stop it: scancel {' '.join(sorted(mine))}", file=sys.stderr)
        raise
    mine = find_arrays(folders) - before
    while has_tasks(mine):
        time.sleep(POLL_S)
    for run in runs:
        if mine and not run.folder.exists():
            logs = run.folder.parent / ".submitit"
            sweep.faults[run.id] = Fault(1, f"left nothing behind: see the logs in {logs}/{min(mine)}_*/")


def find_arrays(folders: Set[Path]) -> set[str]:
    """Ids of the job arrays submitted for runs in these folders. submitit makes a folder ID_TASK, or ID, a job."""
    jobs = (re.fullmatch(r"(\d+)(_\d+)?", p.name) for folder in folders for p in (folder / ".submitit").glob("*"))
    return {job[1] for job in jobs if job}


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
