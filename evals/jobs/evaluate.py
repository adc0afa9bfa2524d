"""A run at work, and with it the other runs of a sweep that share its prompts.

A run that was stopped goes on where it stopped. Batches are cut from the whole list of samples before those that are
done are left out, so a resumed run computes what an uninterrupted one would have.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from evals.jobs.decode import Cell, attempt, parts
from evals.jobs.progress import Progress
from evals.jobs.prompts import Prompt, batches, prepared, prompt_hashes
from evals.jobs.result import aggregate
from evals.run import build, sweep
from evals.run.folder import RunFolder
from evals.run.settings import Run
from evals.run.signals import finish_first
from evals.run.tracking import Tracker, following
from lukv.model import LoadedModel


def computed(folder: RunFolder) -> dict[str, Any]:
    """Do what is left of the run and of its group."""
    run = folder.run
    with build.input_errors(folder.run):
        build.method(run)
        build.tracker(run)
        model = build.model(run)
        prompts, facts = prepared(build.model_settings(run), json.dumps(run["benchmark"]), run["limit"])
    about = {"prompts": prompt_hashes(prompts), "benchmark": facts, "model_commit": model.commit}
    with ExitStack() as opened:
        cells = [cell_of(folder, model, about), *others(run, model, about, opened)]
        with following(run["track"], run.folder, list(cells[0].done.values())) as tracker:
            work(cells, prompts, model, tracker)
            for cell in cells:
                conclude(cell, prompts, facts)
            if cells[0].failure is not None:
                raise cells[0].failure
            result = folder.result()
            assert result is not None
            tracker.finish(result)
            sweep.fresh.remove(run.id)
    return result


def cell_of(folder: RunFolder, model: LoadedModel, about: Mapping[str, Any]) -> Cell:
    """Begin a run, or go on with it. Raises InputError for a method that cannot be built."""
    with build.input_errors(folder.run):
        eviction = build.eviction(folder.run, model)
    caveat = getattr(eviction.allocator, "caveat", None) if eviction is not None else None
    if caveat:
        print(caveat, file=sys.stderr)
    folder.begin({**about, "caveats": [caveat] if caveat else []})
    done = {i: line for i, line in folder.samples().items() if "error" not in line}
    return Cell(folder.run, folder, eviction, done)


def others(run: Run, model: LoadedModel, about: Mapping[str, Any], opened: ExitStack) -> Iterator[Cell]:
    """The rest of the run's group, as far as it is neither finished, nor another process's, nor at fault: what is
    wrong with a run is said when its own turn comes."""
    for other in sweep.group(run)[1:]:
        try:
            with ExitStack() as mine:
                folder = mine.enter_context(RunFolder(other))
                if folder.result() is None:
                    yield cell_of(folder, model, about)
                    opened.push(mine.pop_all())
        except (RuntimeError, ValueError, OSError):
            continue


def work(cells: Sequence[Cell], prompts: Sequence[Prompt], model: LoadedModel, tracker: Tracker) -> None:
    """Answer what is not done yet; the tracker follows the first cell. Runs of a sweep are decoded together: the times
    of a run and its reference alone are their own."""
    join = sum(cell.run.id in sweep.planned for cell in cells) > 1
    run = cells[0].run
    name = run.id if not join else f"{run.experiment}, {len(cells)} runs"
    progress = Progress(name, len(prompts) * len(cells), sum(len(cell.done) for cell in cells))
    for batch in batches(prompts, run["batch_size"]):
        able = [cell for cell in cells if cell.failure is None]
        answered = (lines for part, some in parts(batch, able) if some for lines in attempt(part, some, model, join))
        with finish_first("the batch at hand"):
            for cell, lines in answered:
                new = cell.record(lines)
                progress.update(len(new))
                for line in new if cell is cells[0] else ():
                    tracker.sample(line)
    progress.close()


def conclude(cell: Cell, prompts: Sequence[Prompt], facts: Mapping[str, Any]) -> None:
    """Write the cell's result, or remember why there is none."""
    if cell.failed and cell.failure is None:
        cell.failure = RuntimeError(
            f"{len(cell.failed)} of {len(prompts)} samples failed, the first with: {cell.failed[0]['error']}. "
            f"The others are kept in {cell.run.folder}; the same command tries these again"
        )
    if cell.failure is not None:
        sweep.failures[cell.run.id] = cell.failure
        return
    result = aggregate(cell.run, [cell.done[p.sample.id] for p in prompts])
    result["left_out"] = sorted(facts.get("left_out", ()))
    cell.folder.finish(result)
    sweep.fresh.add(cell.run.id)
