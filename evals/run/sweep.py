"""Which runs of a command may share their prompts: those that agree in everything but the method and its budget.

The first run of such a group does the work of all of it (evals/jobs/evaluate.py); when the others' turn comes, their
results are there. Imported by `run.py --help`: nothing heavy here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from evals.run.settings import Run, without_tables

OWN = ("method", "scorer", "allocator", "protection", "budget", "budget_tokens")
"""The settings in which the runs of a group differ."""

planned: dict[str, Run] = {}
"""The runs that this process was asked for, by id. Empty in a Slurm task, which does one run."""

failures: dict[str, Exception] = {}
"""What went wrong with a run while another run of its group was at work: its own turn raises it."""

fresh: set[str] = set()
"""Runs that were finished by another one of their group and have not had their own turn yet."""


def begin(runs: Sequence[Run]) -> None:
    """The runs of a new command."""
    planned.clear()
    planned.update({run.id: run for run in runs})
    failures.clear()
    fresh.clear()


def group(run: Run) -> list[Run]:
    """The run first, and with share=true the others of the command that share its prompts, and their references."""
    if not run["share"]:
        return [run]
    same = common(run)
    runs = {run.id: run, **{i: other for i, other in planned.items() if common(other) == same}}
    for other in list(runs.values()):
        reference = other.reference()
        if reference is not None:
            runs.setdefault(reference.id, reference)
    return list(runs.values())


def common(run: Run) -> str:
    """What all runs of a group agree in. Where tables lie is the method's, as in a run's subject."""
    config = {**run.config, "model": without_tables(run["model"])}
    return json.dumps({k: v for k, v in config.items() if k not in OWN}, sort_keys=True)
