"""Evaluate a run, and with it the other runs of the sweep that share its prompts.

A run that was stopped goes on where it stopped. Batches are cut from the whole list of samples, and only then are the
samples left out that are done: a resumed run computes what an uninterrupted one would have. A run that is new begins
with the samples of a finished one that had a smaller limit=.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evals.jobs.benchmark import tokenize_benchmark
from evals.jobs.decode import ActiveMethod, answer_each, check_talking
from evals.jobs.lines import Line
from evals.jobs.progress import show_progress
from evals.jobs.prompts import TokenizedSample, cut_batches, hash_prompts, hash_references
from evals.jobs.result import summarize
from evals.run import build
from evals.run.files import read_json
from evals.run.folder import FolderInUse, RunFolder, read_samples
from evals.run.instantiate import InputError
from evals.run.records import Result
from evals.run.settings import Run
from evals.run.signals import finish_first
from evals.run.smaller import find_smaller
from evals.run.sweep import Outcome, Sweep
from evals.run.tracking import Tracker, follow
from lukv.model import LoadedModel
from lukv.selection import Eviction


@dataclass
class ActiveRun(ActiveMethod):
    """A run at work: what is new goes into its folder."""

    run: Run
    folder: RunFolder

    def write(self, new: Sequence[Line]) -> None:
        self.folder.append(new)


def compute_group(folder: RunFolder, sweep: Sweep) -> Result:
    """Do what is left of the run and of its group. The result is the run's; those of the others are in the sweep."""
    run = folder.run
    with build.input_errors(run):
        build.check_model(run)
        method = build.build_method(run)
        build.check_tracker(run)
        model = build.get_model(run)
        samples, facts = tokenize_benchmark(
            build.select_model_settings(run), json.dumps(run["benchmark"]), run["limit"]
        )
    about = {
        **{"prompts": hash_prompts(samples), "references": hash_references(samples), "benchmark": facts},
        **build.describe_model(model),
    }
    with ExitStack() as opened:
        first = begin(folder, method, model, samples, about)
        others = open_others(folder, sweep, model, samples, about, opened)
        for each in (first, *others):
            each.recorded = choose_recorded(samples, each.run["record_kept"])
        with follow(run["track"], run.folder, list(first.done.values())) as tracker:
            answer([first, *others], sweep, samples, model, tracker)
            for other in others:
                sweep.outcomes[other.run.id] = conclude(other, samples, facts)
            outcome = conclude(first, samples, facts)
            if outcome.failure is not None:
                raise outcome.failure
            assert outcome.result is not None
            tracker.finish(outcome.result)
    return outcome.result


def choose_recorded(samples: Sequence[TokenizedSample], count: int) -> frozenset[str]:
    """The ids of the first `count` samples of each task."""
    by_task: dict[str, list[str]] = {}
    for s in samples:
        by_task.setdefault(s.task.name, []).append(s.sample.id)
    return frozenset(i for ids in by_task.values() for i in ids[:count])


def begin(
    folder: RunFolder,
    method: build.Method | None,
    model: LoadedModel,
    samples: Sequence[TokenizedSample],
    about: Mapping[str, Any],
) -> ActiveRun:
    """Begin a run, or go on with it. Raises InputError for a method that does not go with the model or the samples."""
    talks = any(s.sample.conversation for s in samples)
    with build.input_errors(folder.run):
        build.check_turns(folder.run, talks)
        if talks and method is not None:
            check_talking(method.scorer)
        eviction = build.build_eviction(folder.run, method, model)
        later = build.build_later(folder.run, method, model)
        check_seen(eviction, samples)
    caveat = getattr(eviction.allocator, "caveat", None) if eviction is not None else None
    if caveat:
        print(caveat, file=sys.stderr)
    smaller = None if folder.begun else find_smaller(folder.run)
    lines = take_over(smaller, samples, about, choose_recorded(samples, folder.run["record_kept"])) if smaller else []
    taken = {"taken_over": smaller.name} if smaller and lines else {}
    folder.begin({**about, "caveats": [caveat] if caveat else [], **taken})
    if lines:
        folder.append(lines)
    done = {i: line for i, line in folder.read_samples().items() if "error" not in line}
    return ActiveRun(eviction, done, folder.run, folder, later=later)


def take_over(
    smaller: Path, samples: Sequence[TokenizedSample], about: Mapping[str, Any], recorded: frozenset[str]
) -> list[dict[str, Any]]:
    """The lines of a finished run on fewer samples. None if their prompts, right answers or weights are others. Not
    those that lack which tokens were kept and are among `recorded`, for which this run is asked."""
    record, lines = read_json(smaller / "run.json"), read_samples(smaller / "samples.jsonl")
    same = {line["id"] for line in lines}
    common = [s for s in samples if s.sample.id in same]
    now = {**about, "prompts": hash_prompts(common), "references": hash_references(common)}
    if any(record.get(key) != now[key] for key in ("prompts", "references", "weights_hash")):
        return []
    return [line for line in lines if "kept_tokens" in line or line["id"] not in recorded]


def check_seen(eviction: Eviction | None, samples: Sequence[TokenizedSample]) -> None:
    """Raise InputError if the method looks from the question and a sample does not show it."""
    hidden = [s.sample.id for s in samples if not s.seen]
    if eviction is not None and eviction.scorer.needs_question and hidden:
        raise InputError(
            f"scorer={eviction.scorer.name} looks from the question, and {hidden[0]} is compressed without it: "
            "choose benchmark.question_aware=true (ruler, jsonl) or benchmark.protocol=official (longbench)"
        )


def open_others(
    folder: RunFolder,
    sweep: Sweep,
    model: LoadedModel,
    samples: Sequence[TokenizedSample],
    about: Mapping[str, Any],
    opened: ExitStack,
) -> list[ActiveRun]:
    """The rest of the run's group, with folders that stay open as long as `opened`.

    A run that is finished, or that cannot be done, is noted in the sweep, which says so when its own turn comes. One
    that another process has is left to its own turn.
    """
    active = []
    for other in sweep.find_group(folder.run):
        if other.id == folder.run.id:
            continue
        try:
            with ExitStack() as mine:
                own = mine.enter_context(RunFolder(other))
                result = own.read_result()
                if result is None:
                    with build.input_errors(other):
                        method = build.build_method(other)
                    active.append(begin(own, method, model, samples, about))
                    opened.push(mine.pop_all())
                else:
                    sweep.outcomes[other.id] = Outcome(result, found=True)
        except FolderInUse:
            continue
        except (RuntimeError, ValueError, OSError) as error:
            sweep.outcomes[other.id] = Outcome(failure=error)
    return active


def answer(
    runs: Sequence[ActiveRun], sweep: Sweep, samples: Sequence[TokenizedSample], model: LoadedModel, tracker: Tracker
) -> None:
    """Answer what is not done yet. The tracker follows the first run.

    Runs of a sweep are decoded together. A single run and its reference are not, so that each has its own times.
    """
    together = sum(sweep.holds(each.run) for each in runs) > 1
    run = runs[0].run
    name = f"{run.comparison_id}, {len(runs)} runs" if together else run.id
    done = sum(len(each.done) for each in runs)
    with show_progress(name, len(samples) * len(runs)) as reached:
        reached(done)
        for batch in cut_batches(samples, run["batch_size"]):
            with finish_first("the batch at hand"):
                for each, lines in answer_each(batch, runs, model, together):
                    new = each.record(lines)
                    done += len(new)
                    reached(done)
                    for line in new if each is runs[0] else ():
                        tracker.sample(line)


def conclude(each: ActiveRun, samples: Sequence[TokenizedSample], facts: Mapping[str, Any]) -> Outcome:
    """Write the run's result, or say why there is none. Only the run whose turn it is has been tracked."""
    if each.failed and each.failure is None:
        each.failure = RuntimeError(
            f"{len(each.failed)} of {len(samples)} samples failed, the first with: {each.failed[0]['error']}. "
            f"The others are kept in {each.run.folder}; the same command tries these again"
        )
    if each.failure is not None:
        return Outcome(failure=each.failure)
    lines = [each.done[s.sample.id] for s in samples]
    result: Result = summarize(each.run, lines, facts.get("left_out", ()))
    each.folder.finish(result)
    return Outcome(result, tracked=False)
