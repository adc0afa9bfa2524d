"""Calibrate: make the budget tables of a model.

Every context is prefilled once, for all scorers and all its questions. It is prefilled a second time where a scorer has
to be fitted before it can rank (the utility probe, Q-Filters).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from evals.jobs.progress import show_progress
from evals.jobs.prompts import tokenize_sample
from evals.plots import draw_budgets, draw_loss_curves
from evals.run import build
from evals.run.folder import RunFolder
from evals.run.instantiate import InputError, create
from evals.run.provenance import find_version, run_git
from evals.run.records import Calibration
from evals.run.settings import Run
from evals.task import Sample
from lukv.artifacts import describe
from lukv.budgets.calibrate import (
    CalibrationContext,
    CalibrationSettings,
    TokenIds,
    fit,
    hash_json,
    measure,
)
from lukv.budgets.oracle import OracleSettings
from lukv.budgets.sampling import Sampling
from lukv.budgets.table import BudgetTable
from lukv.conf import GROUPS, read_option
from lukv.learned import LearnedScorer
from lukv.model import LoadedModel
from lukv.scoring import Scorer
from lukv.selection import Protection


def calibrate(folder: RunFolder) -> Calibration:
    """Begin the run and make its tables."""
    run = folder.run
    job = run["job"]
    with build.input_errors(run):
        build.check_model(run)
        scorers, protection = create_scorers(run), create(run["protection"])
        if asking := [scorer.name for scorer in scorers if scorer.needs_question]:
            raise InputError(f"scorer={asking[0]} looks from the question, which calibration asks after compression")
        oracle = OracleSettings(**job["oracle"], seed=run["seed"])
        rest = ("aggregation", "weigh", "scope", "polish", "power")
        settings = CalibrationSettings(oracle, **{name: job[name] for name in rest})
        source = create(job["data"]["benchmark"])
        model = build.get_model(run)
        tasks = source.tasks(model.tokenizer, job["data"]["contexts"])
        groups = group_by_context([sample for task in tasks for sample in task.samples])
    data = {"name": job["data"]["name"], **dict(source.facts()), "hash": hash_data(groups)}
    folder.begin({"prompts": {"calibration": data["hash"]}, "benchmark": data, **build.describe_model(model)})

    def contexts() -> Iterable[CalibrationContext]:
        return (tokenize(group, model, job["data"]["answers"]) for group in groups)

    facts = describe_making(model, settings, data)
    files = make_tables(model, scorers, protection, contexts, len(groups), settings, facts, folder.path)
    tables = [name for name in files if not name.endswith((".probe.safetensors", ".threshold.safetensors"))]
    summaries = {name: draw_and_summarize(folder.path / "tables" / name) for name in tables}
    return {"status": "done", "run_id": run.id, "tables": files, "summaries": summaries}


def make_tables(
    model: LoadedModel,
    scorers: Sequence[Scorer],
    protection: Protection,
    contexts: Callable[[], Iterable[CalibrationContext]],
    total: int,
    settings: CalibrationSettings,
    facts: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Fit the scorers that have to be fitted, then measure all. Returns the names of the files in folder/tables."""
    tables, files = folder / "tables", []
    learnt = [scorer for scorer in scorers if isinstance(scorer, LearnedScorer)]
    if learnt:
        ready: dict[str, Scorer] = {}
        with show_progress(f"{folder.name}: fit", total, "contexts") as reached:
            learners = fit(model, learnt, protection, contexts(), settings, folder / "fit.safetensors", reached)
        for each, learner in zip(learnt, learners, strict=True):
            files.append(f"{each.name}.probe.safetensors")
            learner.save(tables / files[-1], facts)
            ready[each.name] = each.load_fit(tables / files[-1])
        scorers = [ready.get(scorer.name, scorer) for scorer in scorers]
    with show_progress(f"{folder.name}: measure", total, "contexts") as reached:
        means = measure(model, scorers, protection, contexts(), settings, folder / "state.safetensors", reached)
    for scorer, mean in zip(scorers, means, strict=True):
        samples, tokens = mean.solution.state["samples"], mean.solution.mean("tokens")
        count = {"samples": int(samples), "mean_tokens": round(float(tokens), 1)}
        about = {**facts, **describe(model, scorer, protection), **count}
        mean.solution.table(settings.aggregation, about).save(tables / f"{scorer.name}.safetensors")
        mean.curve.table(about).save(tables / f"{scorer.name}.curve.safetensors")
        mean.threshold.thresholds(about).save(tables / f"{scorer.name}.threshold.safetensors")
        files += [f"{scorer.name}{kind}.safetensors" for kind in ("", ".curve", ".threshold")]
    return files


def create_scorers(run: Run) -> list[Scorer]:
    """The scorers that job.scorers names, with the parameters of their files in conf/; else the run's one."""
    names = run["job"]["scorers"]
    if names is None:
        return [create(run["scorer"])]
    scorers = []
    for name in [names] if isinstance(names, str) else names:
        if name not in GROUPS["scorer"]:
            raise InputError(f"job.scorers: no scorer named '{name}'. Known: {', '.join(GROUPS['scorer'])}")
        whole = {"scorer": {**read_option("scorer", name)}, "seed": run["seed"], "model": run["model"]}
        plain: Any = OmegaConf.to_container(OmegaConf.create(whole), resolve=True)
        scorers.append(create(plain["scorer"]))
    return scorers


def group_by_context(samples: Iterable[Sample]) -> list[list[Sample]]:
    """The samples of each context, in the order in which contexts first appear."""
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        known = sample.question if sample.layout == "whole" else ""  # the context's last token may depend on it
        apart = sample.context, sample.chat, sample.layout, sample.context_tokens, known
        groups.setdefault(apart, []).append(sample)
    if not groups:
        raise InputError("the calibration data has no samples")
    return list(groups.values())


def tokenize(group: Sequence[Sample], model: LoadedModel, answers: str) -> CalibrationContext:
    """A context with its questions as token ids. answers: which references of a sample count, "all" or the "first"."""
    questions: list[tuple[TokenIds, TokenIds]] = []
    context: list[int] = []
    for sample in group:
        context, question = tokenize_sample(sample, model)
        said = sample.references if answers == "all" else sample.references[:1]
        reference = model.text_ids(" " + ", ".join(said)) if said else []
        questions.append((tuple(question), tuple(reference)))
    longest = model.max_length
    if longest is not None and len(context) + max(len(q) + len(a) for q, a in questions) > longest:
        raise InputError(f"{group[0].id}: {len(context)} tokens and a question, {model.name} takes {longest}")
    return CalibrationContext(tuple(context), tuple(questions))


def hash_data(groups: Iterable[Sequence[Sample]]) -> str:
    def list_parts(s: Sample) -> list[Any]:
        form = [] if (s.layout, s.context_tokens) == ("apart", None) else [s.layout, s.context_tokens]
        return [s.context, s.question, s.answer_prefix, list(s.references), s.chat, *form]

    return hash_json([[list_parts(s) for s in group] for group in groups])


def describe_making(model: LoadedModel, settings: CalibrationSettings, data: dict[str, Any]) -> dict[str, Any]:
    """How a table or a probe was made: its metadata."""
    own = asdict(Sampling.of(model.model.generation_config)) if settings.oracle.own_sampling else None
    return {
        "model": model.name,
        "config_hash": model.config_hash,
        "weights_hash": model.weights_hash,
        **asdict(settings),
        **({"sampling": own} if own else {}),
        "data": json.loads(json.dumps(data, default=str)),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "version": find_version("lukv"),
        "git_sha": run_git("rev-parse", "HEAD"),
    }


def draw_and_summarize(path: Path) -> str:
    """Draw a table's figures beside it. Returns the table in words."""
    table, name = BudgetTable.load(path), path.name.removesuffix(".safetensors")
    draw_budgets(table, path.with_name(f"{name}_budgets.png"))
    draw_loss_curves(table, path.with_name(f"{name}_curves.png"))
    return summarize(table)


def summarize(table: BudgetTable, budget: float = 0.2) -> str:
    """What a table says: tokens for each layer at one budget, heads below their protection, and the certificates."""
    about = table.metadata
    tokens = about["mean_tokens"]
    kept = table.shares(budget) * tokens
    protected = min(about["sink"] + about["recent"], tokens)
    low = 100 * float((kept < protected - 0.5).mean())
    lines = [
        f"{about['scorer']}, {about.get('kind', 'budgets')}: {about['samples']} samples of {tokens:g} tokens (mean)",
        f"  kept at budget {budget:g}:",
        "  layer " + " ".join(f"{i:>6}" for i in range(table.layers)),
        "  tokens" + " ".join(f"{n:6.0f}" for n in kept.mean(axis=1)) + "   a KV head",
        f"  heads below their {protected:g} protected tokens: {low:.1f}%",
    ]
    return "\n".join([*lines, *list_certificate(table)])


def list_certificate(table: BudgetTable, budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)) -> list[str]:
    """How far above the least possible loss the table lies, at most, in per cent. Where the table is a mean of its
    samples' own solutions, the same of these."""
    about = table.metadata
    rows = [round(100 * (1 - budget)) - 1 for budget in budgets]
    columns: dict[str, Any] = {"budget": budgets}
    if table.expected_loss is not None and table.lower_bound is not None:
        columns["expected loss"] = table.expected_loss[rows]
        columns["% above any static table's"] = compute_excess(table.expected_loss, table.lower_bound)[rows]
    if "sample_gaps" in about:
        columns["samples' own: mean %"] = compute_excess(about["sample_loss"], about["sample_lower_bound"])[rows]
        for quantile, name in (("0.5", "median"), ("0.95", "95%"), ("1.0", "largest")):
            columns[name] = 100 * np.array(about["sample_gaps"][quantile])[rows]
    lines = ["  above the least possible loss, at most:", "  " + "  ".join(columns)]
    for values in zip(*columns.values(), strict=True):
        lines.append("  " + "  ".join(f"{x:.4g}".rjust(len(name)) for x, name in zip(values, columns, strict=True)))
    return lines


def compute_excess(loss: Any, bound: Any) -> np.ndarray:
    """By how many per cent losses lie above their lower bounds; 0 where the bound is 0."""
    loss, bound = np.asarray(loss), np.asarray(bound)
    return 100 * (np.divide(loss, bound, out=np.ones_like(loss), where=bound > 0) - 1)
