"""job=calibrate: contexts and questions -> oracle -> solver -> one budget table for each scorer.

Every context is prefilled once, for all scorers and all its questions. What is kept between contexts are the running
means, written to the run folder after each: a run that was stopped goes on, and ends with the same bits as one that
was not.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from evals.harness import build
from evals.harness.config import CONF, InputError, Run, create
from evals.harness.record import RunFolder, git, installed
from evals.task import Sample
from lukv.aggregate import MeanSolution
from lukv.backend.selection import Protection
from lukv.files import write_atomically
from lukv.model import LoadedModel
from lukv.oracle import Oracle, OracleSettings
from lukv.scoring import Scorer
from lukv.table import BudgetTable, description

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """Token ids of a context, and of each question about it with its answer (empty where it is not known)."""

    ids: Ids
    questions: tuple[tuple[Ids, Ids], ...]


@dataclass(frozen=True)
class Settings:
    """aggregation: budgets (mean of the samples' own budgets: the paper) or losses (one solution of the mean loss
    curve). weigh: every (context, question) pair the same (the paper), or every context. scope, polish: see
    lukv.solver.solve."""

    oracle: OracleSettings
    aggregation: Literal["budgets", "losses"] = "budgets"
    weigh: Literal["pairs", "contexts"] = "pairs"
    scope: Literal["global", "layer"] = "global"
    polish: bool = False

    def __post_init__(self) -> None:
        for name, allowed in (("aggregation", ("budgets", "losses")), ("weigh", ("pairs", "contexts"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.scope not in ("global", "layer"):
            raise ValueError(f"scope={self.scope!r}: choose one of global, layer")


def calibrate(run: Run) -> None:
    """The job: tables in the run folder, and with job.save=true in the model's table folder."""
    if not run.evicts:
        raise InputError("job=calibrate makes a table for a scorer: name one, as in scorer=keydiff")
    job = dict(run["job"])
    keep = job.pop("save")  # what is done with the tables does not make another run, nor does the table in use
    run = Run({**run.config, "job": job, "allocator": None}, run.choices, run.nested)
    with RunFolder(run) as folder:
        if folder.result() is None:
            with build.input_errors():
                model = build.model(run)
                scorers, protection = chosen_scorers(run), create(run["protection"])
                oracle = OracleSettings(**job["oracle"], seed=run["seed"])
                settings = Settings(oracle, *(job[name] for name in ("aggregation", "weigh", "scope", "polish")))
                source = create(job["data"]["benchmark"])
                tasks = source.tasks(model.tokenizer, job["data"]["contexts"])
                groups = by_context([sample for task in tasks for sample in task.samples])
            data = {"name": job["data"]["name"], **dict(source.facts()), "hash": digest(groups)}
            folder.begin({"prompts": {"calibration": data["hash"]}, "benchmark": data})
            contexts = (tokenized(group, model, job["data"]["answers"]) for group in groups)
            means = measure(model, scorers, protection, contexts, settings, folder.path, len(groups))
            for scorer, mean in zip(scorers, means, strict=True):
                about = metadata(model, scorer, protection, settings, mean, data)
                mean.table(settings.aggregation, about).save(folder.path / "tables" / f"{scorer.name}.safetensors")
            folder.finish({"status": "done", "run_id": run.id, "tables": [scorer.name for scorer in scorers]})
        else:
            print(f"{run.id}: already done")
        for name in folder.result()["tables"]:  # type: ignore[index]
            path = folder.path / "tables" / f"{name}.safetensors"
            print(f"\n{path}\n{summary(BudgetTable.load(path))}")
            if keep:
                kept = Path(run["model"]["tables"]) / path.name
                write_atomically(kept, path.read_bytes())
                print(f"saved as {kept}")


def measure(
    model: LoadedModel,
    scorers: Sequence[Scorer],
    protection: Protection,
    contexts: Iterable[Context],
    settings: Settings,
    folder: Path,
    total: int | None = None,
) -> list[MeanSolution]:
    """The means over all contexts, one for each scorer. The state after each context is in folder/state.safetensors;
    contexts that it holds already are skipped. Raises ValueError for a context that a scorer's protection covers
    whole."""
    state = State(folder / "state.safetensors", fingerprint(model, scorers, protection, settings))
    means = [
        MeanSolution(model.layers, model.kv_heads, settings.scope, settings.polish, state.of(scorer.name))
        for scorer in scorers
    ]
    oracle = Oracle(model, settings.oracle)
    bar = tqdm(contexts, "calibrate", total, unit="context", disable=not sys.stderr.isatty())
    for number, context in enumerate(bar):
        if number < state.contexts:
            continue
        measured = oracle.context(context.ids, scorers)
        tokens = len(context.ids)
        ranked = []
        for scorer in scorers:
            protected = int(protection.over(scorer).mask(tokens).sum())
            if protected == tokens:
                raise ValueError(f"context {number} has {tokens} tokens, all of them protected under {scorer.name}")
            ranked.append(measured.order(scorer, protection)[..., protected:])
        weight = 1.0 if settings.weigh == "pairs" else 1 / len(context.questions)
        for index, (question, answer) in enumerate(context.questions):
            utility = measured.utility(question, answer, 1000 * number + index)
            for mean, order in zip(means, ranked, strict=True):
                mean.add(utility.gather(-1, order).numpy(), tokens, weight)
        state.save(number + 1, {scorer.name: mean.state for scorer, mean in zip(scorers, means, strict=True)})
    return means


class State:
    """The running means on disk: arrays "<scorer>/<name>", how many contexts they hold, what they are means of."""

    def __init__(self, path: Path, made_for: str) -> None:
        self.path, self.made_for, self.contexts = path, made_for, 0
        self.arrays: dict[str, np.ndarray] = {}
        if not path.exists():
            return
        try:
            with safe_open(path, framework="numpy") as file:
                header = file.metadata() or {}
                self.arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): remove it to begin anew") from error
        if header.get("made_for") != made_for:
            raise ValueError(f"{path} was begun with other settings: remove it to begin anew")
        self.contexts = int(header["contexts"])

    def of(self, scorer: str) -> dict[str, np.ndarray]:
        return {name.split("/")[1]: array for name, array in self.arrays.items() if name.split("/")[0] == scorer}

    def save(self, contexts: int, states: dict[str, dict[str, np.ndarray]]) -> None:
        arrays = {f"{scorer}/{name}": array for scorer, state in states.items() for name, array in state.items()}
        write_atomically(self.path, save(arrays, {"made_for": self.made_for, "contexts": str(contexts)}))


def chosen_scorers(run: Run) -> list[Scorer]:
    """Those of job.scorers by name, with their configs' own parameters; else the run's one."""
    names = run["job"]["scorers"]
    if names is None:
        return [build.deployable(create(run["scorer"]))]
    scorers = []
    for name in names:
        path = CONF / "scorer" / f"{name}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise InputError(f"job.scorers: no scorer named '{name}'. Known: {known}")
        config = OmegaConf.create({"scorer": OmegaConf.load(path), "seed": run["seed"]})  # a scorer may want the seed
        plain: Any = OmegaConf.to_container(config, resolve=True)
        scorers.append(build.deployable(create(plain["scorer"])))
    return scorers


def by_context(samples: Iterable[Sample]) -> list[list[Sample]]:
    """Samples that share a context together, in the order in which contexts first appear."""
    groups: dict[tuple[str, bool], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.context, sample.chat), []).append(sample)
    if not groups:
        raise InputError("the calibration data has no samples")
    return list(groups.values())


def tokenized(group: Sequence[Sample], model: LoadedModel, answers: str) -> Context:
    """answers: which of a sample's references are its answer, "all" or the "first"."""
    questions: list[tuple[Ids, Ids]] = []
    context: list[int] = []
    for sample in group:
        context, question = model.prompt_ids(sample.context, sample.question, sample.answer_prefix, chat=sample.chat)
        said = sample.references if answers == "all" else sample.references[:1]
        reference = model.tokenizer.encode(" " + ", ".join(said), add_special_tokens=False) if said else []
        questions.append((tuple(question), tuple(reference)))
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and len(context) + max(len(q) + len(a) for q, a in questions) > longest:
        raise InputError(f"{group[0].id}: {len(context)} tokens and a question, {model.name} takes {longest}")
    return Context(tuple(context), tuple(questions))


def digest(groups: Iterable[Sequence[Sample]]) -> str:
    text = hashlib.sha256()
    for group in groups:
        for s in group:
            text.update(json.dumps([s.context, s.question, s.answer_prefix, list(s.references), s.chat]).encode())
    return text.hexdigest()[:16]


def fingerprint(model: LoadedModel, scorers: Sequence[Scorer], protection: Protection, settings: Settings) -> str:
    about = [asdict(settings), *(description(model.config_hash, scorer, protection) for scorer in scorers)]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def metadata(
    model: LoadedModel,
    scorer: Scorer,
    protection: Protection,
    settings: Settings,
    mean: MeanSolution,
    data: dict[str, Any],
) -> dict[str, Any]:
    """What the table is of and how it was made (METHODS: LU-KV, 5)."""
    return {
        "model": model.name,
        **description(model.config_hash, scorer, protection),
        **asdict(settings),
        "data": json.loads(json.dumps(data, default=str)),
        "samples": int(mean.state["samples"]),
        "mean_tokens": round(float(mean.mean("tokens")), 1),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "version": installed("lukv"),
        "git_sha": git("rev-parse", "HEAD"),
    }


def summary(table: BudgetTable, budget: float = 0.2) -> str:
    """What a table says at one budget: tokens for each layer, certificate, heads below their protection."""
    about, row = table.metadata, round(100 * (1 - budget)) - 1
    tokens = about["mean_tokens"]
    kept = table.shares(budget) * tokens
    protected = min(about["sink"] + about["recent"], tokens)
    low = 100 * float((kept < protected - 0.5).mean())
    lines = [
        f"{about['scorer']}: {about['samples']} samples of {tokens:g} tokens on average, kept at budget {budget:g}:",
        "  layer " + " ".join(f"{i:>6}" for i in range(table.layers)),
        "  tokens" + " ".join(f"{n:6.0f}" for n in kept.mean(axis=1)) + "   a KV head",
        f"  heads below their {protected:g} protected tokens: {low:.1f}%",
    ]
    if table.expected_loss is not None and table.lower_bound is not None:
        loss, bound = table.expected_loss[row], table.lower_bound[row]
        gap = 100 * (loss / bound - 1) if bound > 0 else 0.0
        lines.append(f"  expected loss {loss:.4g}, at most {gap:.2f}% above any static table's")
        loss, bound = about["sample_loss"][row], about["sample_lower_bound"][row]
        gap = 100 * (loss / bound - 1) if bound > 0 else 0.0
        lines.append(f"  the samples' own budgets: {loss:.4g}, at most {gap:.2f}% above the least possible")
    return "\n".join(lines)
