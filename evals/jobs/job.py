"""job=evaluate: the run, the reference run it is compared with, and with them the other runs of a sweep that share
their prompts.

What is finished is read and shown without torch or the model; evals/jobs/evaluate.py does what is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evals.run import sweep
from evals.run.folder import RunFolder, read_samples
from evals.run.settings import Run
from evals.run.tracking import following
from evals.text import result_table


def evaluate(run: Run) -> None:
    """The run, then the reference run it is compared with, then both in one table."""
    result = result_of(run)
    reference = run.reference()
    beside = result_of(reference, wait=True) if reference else None
    print(result_table(result, beside))
    print(f"\n{run.folder}/")


def result_of(run: Run, wait: bool = False) -> dict[str, Any]:
    """The result of one run: read if it is finished, else computed, together with those of its group. `wait` for
    another process that computes it."""
    if run.id in sweep.failures:
        raise sweep.failures[run.id]
    with RunFolder(run, wait) as folder:
        finished = folder.result()
        if finished is None:
            from evals.jobs.evaluate import computed

            return computed(folder)
        if run.id in sweep.fresh:
            sweep.fresh.remove(run.id)
            followed_afterwards(folder, finished)
        elif not wait:
            print(f"{run.id}: already done")
        return finished


def followed_afterwards(folder: RunFolder, result: Mapping[str, Any]) -> None:
    """Track a run that was finished beside another one: W&B follows one run at a time."""
    with following(folder.run["track"], folder.path) as tracker:
        for line in read_samples(folder.path / "samples.jsonl"):
            tracker.sample(line)
        tracker.finish(result)
