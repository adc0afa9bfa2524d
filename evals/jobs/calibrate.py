"""A calibration's tables: every context is prefilled once, for all scorers and all its questions; a second time where a
scorer has to be fitted before it can rank (the utility probe).
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

from evals.jobs.prompts import ids_of
from evals.plots import head_budgets, loss_curves
from evals.run import build
from evals.run.folder import RunFolder, git, installed
from evals.run.settings import CONF, InputError, Run, create
from evals.task import Sample
from lukv.budgets.calibrate import Context, Ids, Learnt, Settings, digest, fit, measure
from lukv.budgets.oracle import OracleSettings
from lukv.budgets.sampling import Sampling
from lukv.budgets.table import BudgetTable, description
from lukv.eviction import Protection
from lukv.model import LoadedModel
from lukv.scoring import Scorer


def made(folder: RunFolder) -> dict[str, Any]:
    """Begin the run and make its tables; what result.json says of it."""
    run = folder.run
    job = run["job"]
    with build.input_errors(folder.run):
        scorers, protection = chosen_scorers(run), create(run["protection"])
        oracle = OracleSettings(**job["oracle"], seed=run["seed"])
        rest = ("aggregation", "weigh", "scope", "polish", "power")
        settings = Settings(oracle, **{name: job[name] for name in rest})
        source = create(job["data"]["benchmark"])
        model = build.model(run)
        tasks = source.tasks(model.tokenizer, job["data"]["contexts"])
        groups = by_context([sample for task in tasks for sample in task.samples])
    data = {"name": job["data"]["name"], **dict(source.facts()), "hash": hash_of(groups)}
    folder.begin({"prompts": {"calibration": data["hash"]}, "benchmark": data, "model_commit": model.commit})

    def contexts() -> Iterable[Context]:
        return (tokenized(group, model, job["data"]["answers"]) for group in groups)

    facts = metadata(model, settings, data)
    files = make_tables(model, scorers, protection, contexts, len(groups), settings, facts, folder.path)
    tables = [name for name in files if not name.endswith(".probe.safetensors")]
    summaries = {name: shown(folder.path / "tables" / name) for name in tables}
    return {"status": "done", "run_id": run.id, "tables": files, "summaries": summaries}


def make_tables(
    model: LoadedModel,
    scorers: Sequence[Scorer],
    protection: Protection,
    contexts: Callable[[], Iterable[Context]],
    total: int,
    settings: Settings,
    facts: dict[str, Any],
    folder: Path,
) -> list[str]:
    """Fit what has to be fitted, then measure; the names of the files in folder/tables."""
    tables, files = folder / "tables", []
    learnt = [scorer for scorer in scorers if isinstance(scorer, Learnt)]
    if learnt:
        ready: dict[str, Scorer] = {}
        learners = fit(model, learnt, protection, contexts(), settings, folder / "fit.safetensors", total)
        for each, learner in zip(learnt, learners, strict=True):
            files.append(f"{each.name}.probe.safetensors")
            learner.save(tables / files[-1], facts)
            ready[each.name] = each.fitted(tables / files[-1])
        scorers = [ready.get(scorer.name, scorer) for scorer in scorers]
    means = measure(model, scorers, protection, contexts(), settings, folder / "state.safetensors", total)
    for scorer, mean in zip(scorers, means, strict=True):
        samples, tokens = mean.solution.state["samples"], mean.solution.mean("tokens")
        count = {"samples": int(samples), "mean_tokens": round(float(tokens), 1)}
        about = {**facts, **description(model, scorer, protection), **count}
        mean.solution.table(settings.aggregation, about).save(tables / f"{scorer.name}.safetensors")
        mean.curve.table(about).save(tables / f"{scorer.name}.curve.safetensors")
        files += [f"{scorer.name}.safetensors", f"{scorer.name}.curve.safetensors"]
    return files


def chosen_scorers(run: Run) -> list[Scorer]:
    """Those of job.scorers by name, with their configs' own parameters; else the run's one."""
    names = run["job"]["scorers"]
    if names is None:
        return [create(run["scorer"])]
    scorers = []
    for name in [names] if isinstance(names, str) else names:
        path = CONF / "scorer" / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise InputError(f"job.scorers: no scorer named '{name}'. Known: {known}")
        whole = {
            "scorer": OmegaConf.load(path),
            "seed": run["seed"],
            "model": run["model"],
        }  # what a scorer may refer to
        plain: Any = OmegaConf.to_container(OmegaConf.create(whole), resolve=True)
        scorers.append(create(plain["scorer"]))
    return scorers


def by_context(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples that share a context together, in the order in which contexts first appear."""
    groups: dict[tuple[Any, ...], list[Sample]] = {}
    for sample in samples:
        known = sample.question if sample.layout == "whole" else ""  # the context's last token may depend on it
        apart = sample.context, sample.chat, sample.layout, sample.context_tokens, known
        groups.setdefault(apart, []).append(sample)
    if not groups:
        raise InputError("the calibration data has no samples")
    return list(groups.values())


def tokenized(group: Sequence[Sample], model: LoadedModel, answers: str) -> Context:
    """answers: which of a sample's references are its answer, "all" or the "first"."""
    questions: list[tuple[Ids, Ids]] = []
    context: list[int] = []
    for sample in group:
        context, question = ids_of(sample, model)
        said = sample.references if answers == "all" else sample.references[:1]
        reference = model.tokenizer.encode(" " + ", ".join(said), add_special_tokens=False) if said else []
        questions.append((tuple(question), tuple(reference)))
    longest = model.max_length
    if longest is not None and len(context) + max(len(q) + len(a) for q, a in questions) > longest:
        raise InputError(f"{group[0].id}: {len(context)} tokens and a question, {model.name} takes {longest}")
    return Context(tuple(context), tuple(questions))


def hash_of(groups: Iterable[Sequence[Sample]]) -> str:
    def parts(s: Sample) -> list[Any]:
        form = [] if (s.layout, s.context_tokens) == ("apart", None) else [s.layout, s.context_tokens]
        return [s.context, s.question, s.answer_prefix, list(s.references), s.chat, *form]

    return digest([[parts(s) for s in group] for group in groups])


def metadata(model: LoadedModel, settings: Settings, data: dict[str, Any]) -> dict[str, Any]:
    """How a table or a probe was made (METHODS: LU-KV, 5)."""
    own = asdict(Sampling.of(model.model.generation_config)) if settings.oracle.own_sampling else None
    return {
        "model": model.name,
        "config_hash": model.config_hash,
        "weights_hash": model.weights_hash,
        **asdict(settings),
        **({"sampling": own} if own else {}),
        "data": json.loads(json.dumps(data, default=str)),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "version": installed("lukv"),
        "git_sha": git("rev-parse", "HEAD"),
    }


def shown(path: Path) -> str:
    """Draw a table's figures beside it; the table in words."""
    table, name = BudgetTable.load(path), path.name.removesuffix(".safetensors")
    head_budgets(table, path.with_name(f"{name}_budgets.png"))
    loss_curves(table, path.with_name(f"{name}_curves.png"))
    return summary(table)


def summary(table: BudgetTable, budget: float = 0.2) -> str:
    """What a table says: tokens for each layer at one budget, heads below their protection; the certificates."""
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
    return "\n".join([*lines, *certificate(table)])


def certificate(table: BudgetTable, budgets: Sequence[float] = (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)) -> list[str]:
    """How far above the least possible loss the table lies, at most, in per cent; and its samples' own solutions, where
    it is a mean of these."""
    about = table.metadata
    rows = [round(100 * (1 - budget)) - 1 for budget in budgets]
    columns: dict[str, Any] = {"budget": budgets}
    if table.expected_loss is not None and table.lower_bound is not None:
        columns["expected loss"] = table.expected_loss[rows]
        columns["% above any static table's"] = _above(table.expected_loss, table.lower_bound)[rows]
    if "sample_gaps" in about:
        columns["samples' own: mean %"] = _above(about["sample_loss"], about["sample_lower_bound"])[rows]
        for quantile, name in (("0.5", "median"), ("0.95", "95%"), ("1.0", "largest")):
            columns[name] = 100 * np.array(about["sample_gaps"][quantile])[rows]
    lines = ["  above the least possible loss, at most:", "  " + "  ".join(columns)]
    for values in zip(*columns.values(), strict=True):
        lines.append("  " + "  ".join(f"{x:.4g}".rjust(len(name)) for x, name in zip(values, columns, strict=True)))
    return lines


def _above(loss: Any, bound: Any) -> np.ndarray:
    loss, bound = np.asarray(loss), np.asarray(bound)
    return 100 * (np.divide(loss, bound, out=np.ones_like(loss), where=bound > 0) - 1)
