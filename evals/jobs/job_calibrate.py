"""job=calibrate: contexts and questions -> oracle -> solver -> a budget table and a curve for each scorer.

Shown and saved again without torch; evals/jobs/calibrate.py makes them.
"""

from __future__ import annotations

from pathlib import Path

from evals.run.folder import RunFolder
from evals.run.settings import InputError, Run
from evals.run.tracking import following
from lukv.artifacts import write_atomically


def calibrate(run: Run) -> None:
    """The job: tables in the run folder, and with job.save=true in the model's table folder."""
    if not run.evicts:
        raise InputError("job=calibrate makes a table for a scorer: name one, as in scorer=keydiff")
    job = dict(run["job"])
    keep = job.pop("save")  # what is done with the tables does not make another run
    named = Run({**run.config, "job": job}, run.choices, run.nested)
    with RunFolder(named) as folder:
        result = folder.result()
        if result is None:
            from evals.jobs.calibrate import made

            result = made(folder)
            folder.finish(result)
            with following(run["track"], folder.path) as tracker:
                tracker.finish(result)
        else:
            print(f"{run.id}: already done")
        for name in result["tables"]:
            path = folder.path / "tables" / name
            print(f"\n{path}")
            if name in result.get("summaries", {}):
                print(result["summaries"][name])
            if keep:
                kept = Path(run["model"]["tables"]) / name
                write_atomically(kept, path.read_bytes())
                print(f"saved as {kept}")
