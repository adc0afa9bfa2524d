"""Waiting for a sweep that Slurm runs, to its real end.

submitit's launcher gives up at the first task that Slurm calls lost, while the others still run; a task that is put back
into the queue is at times called lost although it succeeds later; and a task that dies of an exception is called
completed. So the launcher's word counts for nothing: once it returns or gives up, wait until Slurm has none of the array's
tasks left. What became of each run is then read from its folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager
from pathlib import Path

POLL_S = 5.0


@contextmanager
def waiting(runs: Path) -> Iterator[None]:
    """Around the launch of a sweep whose run folders lie in `runs`: ends when Slurm has none of its tasks left.

    Raises RuntimeError if Slurm did not take the sweep.
    """
    before = arrays(runs)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints the launcher's exception and ends the process
    try:
        yield
    except RuntimeError as e:  # submitit's errors are of this kind
        if not arrays(runs) - before:
            raise RuntimeError(f"Slurm: {' '.join(str(e).split())}") from e
    except KeyboardInterrupt:
        mine = " ".join(sorted(arrays(runs) - before))
        print(f"run.py: Slurm goes on without this process. To stop it: scancel {mine}", file=sys.stderr)
        raise
    while queued(arrays(runs) - before):
        time.sleep(POLL_S)


def arrays(runs: Path) -> set[str]:
    """Ids of the job arrays that were submitted from here: submitit makes a folder ID_TASK, or ID, for each job."""
    return {p.name.split("_")[0] for p in (runs / ".submitit").glob("[0-9]*")}


def queued(ids: Set[str]) -> bool:
    """Whether a task of these arrays waits, runs or ends. Also true while Slurm does not answer: it may be busy."""
    if not ids:
        return False
    command = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(sorted(ids))}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        return True
    forgotten = "Invalid job id" in done.stderr  # over for so long that Slurm has dropped it
    return bool(done.stdout.strip()) or (done.returncode != 0 and not forgotten)
