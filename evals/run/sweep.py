"""The runs of one command, and what became of each in this process.

Runs that agree in everything but the method and its budget can share their prompts. The first of such a group to have
its turn does the work of all of it; when the others' turns come, their outcomes are here. `run.py --help` imports this
module, so nothing heavy is imported here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from evals.run.records import Result
from evals.run.settings import Run, drop_tables
from lukv.names import BUDGETS

METHOD_KEYS = ("method", "scorer", "allocator", "protection", "decoding", *BUDGETS, "cache_dtype")
"""The settings in which the runs of a group differ."""


@dataclass(frozen=True)
class PlannedRun:
    """A run that the command line asks for.

    finished: it was done before. command: does this run alone. task: its number among all jobs that Hydra launches.
    """

    run: Run
    finished: bool = False
    command: str = ""
    task: int = 0


@dataclass
class Outcome:
    """A run's result, or why there is none.

    found: the result was in the folder already. tracked: W&B has it, if it is asked to follow the run.
    """

    result: Result | None = None
    failure: Exception | None = None
    found: bool = False
    tracked: bool = True


class Fault(NamedTuple):
    """What the user is told of a run that went wrong, and the exit code it leads to."""

    code: int
    line: str


@dataclass
class Sweep:
    """The runs of one command.

    in_process: they are done one after the other in this process as they were planned; else Hydra launches them.
    slurm_logs: the folder of the logs if they go to Slurm, with %j where the id of a task goes.
    outcomes, faults: by run id.
    """

    planned: Sequence[PlannedRun] = ()
    in_process: bool = False
    slurm_logs: str | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    faults: dict[str, Fault] = field(default_factory=dict)

    def __reduce__(self) -> Any:
        """A sweep does not travel to other processes: a task of a Slurm array does one run, alone."""
        return Sweep, ()

    def holds(self, run: Run) -> bool:
        return any(run.id == p.run.id for p in self.planned)

    def find_group(self, run: Run) -> list[Run]:
        """The run, and with share_prefill=true the others of the command that share its prompts, and their references.
        Those whose outcome is known are left out."""
        if not run["share_prefill"]:
            return [run]
        common = find_common(run)
        group = {run.id: run, **{p.run.id: p.run for p in self.planned if find_common(p.run) == common}}
        for other in list(group.values()):
            reference = other.make_reference()
            if reference is not None:
                group.setdefault(reference.id, reference)
        return [other for other in group.values() if other.id not in self.outcomes]


def find_common(run: Run) -> str:
    """What all runs of a group agree in, as JSON. Where tables lie is the method's, as in a run's identity."""
    config = {**run.config, "model": drop_tables(run["model"])}
    return json.dumps({k: v for k, v in config.items() if k not in METHOD_KEYS}, sort_keys=True)
