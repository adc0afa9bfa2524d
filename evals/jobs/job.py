"""What job= names: from a run's folder to its result.

Every job is open -> finished result, or compute -> describe. What is finished is read and described without torch or a
model: the modules that compute are imported only where there is something to compute.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from evals.run.files import read_json
from evals.run.fingerprint import fingerprint
from evals.run.folder import FolderInUse, RunFolder
from evals.run.instantiate import InputError
from evals.run.provenance import collect_provenance, quote_command
from evals.run.records import Result
from evals.run.settings import Run
from evals.run.sweep import Outcome, Sweep
from evals.run.tracking import follow_finished
from evals.text import milliseconds, result_table, size, table
from lukv.artifacts import write_atomically
from lukv.asked import check_settings
from lukv.names import BUDGETS


@dataclass(frozen=True)
class Job:
    """One run of a sweep at work.

    ignores: settings that make no difference to this job, as "budget" or "scorer.path". They stay out of run ids.
    leaves_result: a run of it is done if and only if its folder has a result.json.
    """

    run: Run
    sweep: Sweep
    ignores: ClassVar[tuple[str, ...]] = ()
    leaves_result: ClassVar[bool] = True

    @staticmethod
    def name_data(config: Mapping[str, Any]) -> str | None:
        """What run ids say that the job works on; None: the benchmark. config: as in config.yaml."""
        return None

    def do(self) -> None:
        """All work comes before the first word: whoever reads it may close the pipe."""
        result = self.finish()
        text = self.describe(result)
        if text and self.sweep.outcomes[self.run.id].found:
            print(f"{self.run.id}: already done")
        if text:
            print(text)

    def finish(self, wait: bool = False) -> Result:
        """The result: known in this sweep, or read from the folder, or computed now. wait: for another process that has
        the folder. Raises what went wrong with the run, each time it is asked for."""
        outcomes = self.sweep.outcomes
        if self.run.id not in outcomes:
            try:
                outcomes[self.run.id] = self.open(wait)
            except FolderInUse:
                raise  # the other process may be done when it is asked for again
            except Exception as error:
                outcomes[self.run.id] = Outcome(failure=error)
        outcome = outcomes[self.run.id]
        if outcome.failure is not None:
            raise outcome.failure
        if not outcome.tracked:
            outcome.tracked = True
            follow_finished(self.run["track"], self.run.folder)
        assert outcome.result is not None
        return outcome.result

    def open(self, wait: bool) -> Outcome:
        with RunFolder(self.run, wait) as folder:
            result = folder.read_result()
            if result is not None:
                return Outcome(result, found=True)
            check_model(self.run)
            return Outcome(self.compute(folder))

    def compute(self, folder: RunFolder) -> Result:
        """Begin the run, compute its result and write it into the folder."""
        raise NotImplementedError

    def describe(self, result: Result) -> str:
        """The result in words, after doing with it whatever else was asked for. Empty where there is nothing to say."""
        raise NotImplementedError

    def write(self, folder: RunFolder, result: Result) -> Result:
        folder.finish(result)
        follow_finished(self.run["track"], folder.path)
        return result


class Evaluate(Job):
    """Score the method on the benchmark. The run that it is compared with stands beside it in the table."""

    def compute(self, folder: RunFolder) -> Result:
        from evals.jobs.evaluate import compute_group

        return compute_group(folder, self.sweep)

    def describe(self, result: Result) -> str:
        reference = self.run.make_reference()
        beside = Evaluate(reference, self.sweep).finish(wait=True) if reference else None
        note = ""
        if reference is not None and (tasks := self.list_other_prompts(reference)):
            beside = None
            note = (
                f"{reference.id} was asked other prompts in {', '.join(tasks)}: it is not shown beside. If the chat "
                f"template says today's date, model.date=YYYY-MM-DD pins it\n"
            )
        if len(self.sweep.planned) > 1 and not self.run["verbose"]:  # the sweep ends with a matrix of all
            return note.rstrip()
        return f"{note}{result_table(result, beside)}\n\n{self.run.folder}/"

    def list_other_prompts(self, reference: Run) -> list[str]:
        """Tasks in which both runs have prompts, and not the same ones."""
        mine, theirs = (read_json(run.folder / "run.json").get("prompts", {}) for run in (self.run, reference))
        return sorted(task for task in mine if task in theirs and mine[task] != theirs[task])


class Calibrate(Job):
    """Make a budget table and a loss curve for each scorer: contexts and questions -> oracle -> solver."""

    ignores = ("method", "allocator", *BUDGETS, "cache_dtype", "decoding", "benchmark", "limit", "scorer.path")

    @staticmethod
    def name_data(config: Mapping[str, Any]) -> str:
        return f"calibrate-{config['job']['data']['name']}"

    def compute(self, folder: RunFolder) -> Result:
        from evals.jobs.calibrate import calibrate

        return self.write(folder, calibrate(folder))

    def open(self, wait: bool) -> Outcome:
        if not self.run.evicts:
            raise InputError("job=calibrate makes a table for a scorer: name one, as in scorer=keydiff")
        if self.run["job"]["save"] and not self.run["job"]["overwrite"]:
            self.check_free()
        return super().open(wait)

    def check_free(self) -> None:
        """Raise InputError, before hours of work, where job.save=true would overwrite another table. What this very run
        made is no other one."""
        names = self.run["job"]["scorers"] or self.run["scorer"]["name"]
        for name in [names] if isinstance(names, str) else names:
            self.find_copy(f"{name}.safetensors")

    def find_copy(self, name: str) -> Path:
        """Where job.save=true puts a table. Raises InputError where another one is, unless job.overwrite=true."""
        copy, made = Path(self.run["model"]["tables"]) / name, self.run.folder / "tables" / name
        same = made.is_file() and copy.is_file() and fingerprint(made) == fingerprint(copy)
        if copy.exists() and not same and not self.run["job"]["overwrite"]:
            raise InputError(f"{copy} is another table: job.overwrite=true replaces it, model.tables=FOLDER keeps both")
        return copy

    def describe(self, result: Result) -> str:
        """What each table says. job.save=true copies the tables into the model's table folder."""
        lines = []
        for name in result["tables"]:
            path = self.run.folder / "tables" / name
            lines.append(f"\n{path}")
            if name in result.get("summaries", {}):
                lines.append(result["summaries"][name])
            if self.run["job"]["save"]:
                copy = self.find_copy(name)
                write_atomically(copy, path.read_bytes())
                lines.append(f"saved as {copy}")
        return "\n".join(lines)


class Latency(Job):
    """Measure how long the method takes and how many bytes, beside the full cache, at several context lengths."""

    ignores = ("benchmark", "limit")

    @staticmethod
    def name_data(config: Mapping[str, Any]) -> str:
        return "latency"

    def compute(self, folder: RunFolder) -> Result:
        from evals.jobs.latency import measure_run

        return self.write(folder, measure_run(folder))

    def describe(self, result: Result) -> str:
        return f"{latency_table(result['rows'])}\n\n{self.run.folder}/"


class Info(Job):
    """Print what a bug report needs. Nothing is written."""

    leaves_result = False

    def do(self) -> None:
        import torch

        from lukv.backend.kernels import explain

        where = ("cuda", torch.bfloat16) if torch.cuda.is_available() else ("cpu", torch.float32)
        kernels = explain(torch.device(where[0]), where[1])
        about = {"command": quote_command(), **collect_provenance(), "attention": kernels, "settings": self.run.config}
        print(json.dumps(about, indent=2, default=str))


def check_model(run: Run) -> None:
    """Raise InputError for what is wrong with the model's settings and can be seen before torch is imported."""
    try:
        check_settings(run["model"], run["attention"])
    except (ValueError, OSError) as error:
        raise InputError(str(error)) from error


def latency_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each method and context length."""
    head = ["method", "context", "batch", "prefill", "first token", "per token", "cache", "after answer"]
    body = [
        [
            *(r["method"], str(r["context_tokens"]), str(r["batch"])),
            *(milliseconds(r["prefill_s"], 1), milliseconds(r["ttft_s"], 1), milliseconds(r["tpot_s"], 2)),
            size(r["cache_bytes"]),
            size(r["answered_cache_bytes"]) if "answered_cache_bytes" in r else "",
        ]
        for r in rows
    ]
    return table([head, *body])
