"""LU-curve and the utility probe beside LU-KV: python -m scripts.beyond_study --out FOLDER [--help]

Calibrates on some RULER tasks (other seeds than the evaluation's), once for each calibration seed, and evaluates on the
same tasks or others. One prefill of a context serves every method and budget. The yardstick is the full cache's own
greedy answer, teacher-forced behind each compressed cache: `same` is the share of samples of which every token is still
the likeliest, `lp` the mean log-probability of a token. Everybody gets the same protection. One process; what is in
FOLDER already is not computed again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.expected_attention import ExpectedAttention
from baselines.keydiff import KeyDiff
from baselines.snapkv import SnapKV
from evals.harness.measure import Context, Means
from evals.harness.plots import score_against
from evals.harness.tables import by_context, tokenized
from evals.reconstruct import Reconstruct
from evals.ruler import Ruler
from evals.stats import bootstrap_ci, paired_bootstrap
from lukv.aggregate import MeanSolution
from lukv.allocation import Allocator, Budget, Uniform
from lukv.backend.cache import RaggedCache
from lukv.backend.generate import answer, compress
from lukv.backend.selection import Eviction, Protection
from lukv.curve import CurveAllocator, MeanCurve
from lukv.model import LoadedModel, load
from lukv.oracle import Oracle, OracleSettings
from lukv.probe import UtilityProbe
from lukv.scoring import Scorer
from lukv.table import TableAllocator, description

PROTECTION = Protection(sink=4, recent=1)
SCORERS: tuple[Scorer, ...] = (
    KeyDiff(name="keydiff"),
    ExpectedAttention(name="expected_attention"),
    SnapKV(name="snapkv", window=32, kernel=7, pool="max", order="pool_then_group"),
)
PROBE = UtilityProbe()
ROWS = 60  # cells of one sample that are judged in one batch


def contexts_of(model: LoadedModel, tasks: Sequence[str], length: int, count: int, seed: int) -> Iterator[Context]:
    """tasks: RULER's, or "reconstruct:NAME" for the contexts of one without its questions."""
    for name in tasks:
        kind, _, rest = name.rpartition(":")
        source: Any = Ruler(length, [rest], seed=seed)
        source = Reconstruct(source) if kind else source
        for task in source.tasks(model.tokenizer, count):
            for group in by_context(task.samples):
                yield tokenized(group, model, "first" if kind else "all")


def calibrate(
    model: LoadedModel, contexts: Sequence[Context], settings: OracleSettings, power: float, folder: Path
) -> None:
    """Tables, curves and the probe in `folder`, from one decode of each question and two prefills of each context."""
    oracle = Oracle(model, settings)
    learner, kept = PROBE.learner(), []
    means = {s.name: means_of(model, s, power) for s in SCORERS}
    for number, context in enumerate(contexts):
        measured = oracle.context(context.ids, SCORERS)
        worth = [measured.utility(*q, 1000 * number + i) for i, q in enumerate(context.questions)]
        learner.add(measured.layers(PROBE), torch.stack(worth).mean(0) / measured.units, PROTECTION)
        kept.append((worth, measured.units))
        for scorer in SCORERS:
            add(means[scorer.name], measured.order(scorer, PROTECTION), worth, measured.units)
    learner.save(
        folder / "utility_probe.probe.safetensors",
        facts := {"config_hash": model.config_hash, "weights_hash": model.weights_hash},
    )
    probe = PROBE.fitted(folder / "utility_probe.probe.safetensors")
    means[probe.name] = means_of(model, probe, power)
    for context, (worth, units) in zip(contexts, kept, strict=True):
        add(means[probe.name], oracle.context(context.ids).order(probe, PROTECTION), worth, units)
    for scorer in (*SCORERS, probe):
        about = {**facts, **description(model, scorer, PROTECTION)}
        means[scorer.name].solution.table("budgets", about).save(folder / f"{scorer.name}.safetensors")
        means[scorer.name].curve.table(about).save(folder / f"{scorer.name}.curve.safetensors")


def means_of(model: LoadedModel, scorer: Scorer, power: float) -> Means:
    protected = PROTECTION.over(scorer)
    curve = MeanCurve(model.layers, model.kv_heads, protected.sink + protected.recent, power)
    return Means(MeanSolution(model.layers, model.kv_heads), curve)


def add(mean: Means, order: Tensor, worth: Sequence[Tensor], units: Tensor) -> None:
    for utility in worth:
        ranked = utility.gather(-1, order)
        mean.solution.add(ranked[..., mean.curve.protected :].numpy(), order.shape[-1])
        mean.curve.add((ranked / units).numpy(), 1 / len(worth))


def methods(folders: Sequence[Path]) -> Iterator[tuple[str, int, Scorer, Allocator]]:
    """(name, calibration seed's number, scorer, allocator); what needs no calibration comes once."""
    for scorer in SCORERS:
        yield f"{scorer.name}, uniform", 0, scorer, Uniform()
    for number, folder in enumerate(folders):
        probe = PROBE.fitted(folder / "utility_probe.probe.safetensors")
        yield "utility_probe, uniform", number, probe, Uniform()
        for scorer in (*SCORERS, probe):
            yield f"{scorer.name}, lukv", number, scorer, TableAllocator(folder / f"{scorer.name}.safetensors")
            yield (
                f"{scorer.name}, lu_curve",
                number,
                scorer,
                CurveAllocator(folder / f"{scorer.name}.curve.safetensors"),
            )


@torch.inference_mode()
def judge(
    model: LoadedModel, cache: RaggedCache, question: Sequence[int], said: Sequence[int]
) -> list[tuple[int, float]]:
    """Of each row: is each token of `said` the likeliest after the question and those before it? And its mean
    log-probability."""
    rows = len(cache.tokens)
    ids = torch.tensor([[*question, *said[:-1]]])
    at = cache.get_seq_length() + torch.arange(ids.shape[1])
    options = {"past_key_values": cache, "use_cache": True, "logits_to_keep": len(said)}
    out = model.model(ids.expand(rows, -1), position_ids=at.expand(rows, -1), **options)
    target = torch.tensor(said)
    result = []
    for logits in out.logits:
        chosen = logits.float().log_softmax(-1)
        same = bool((chosen.argmax(-1) == target).all())
        result.append((int(same), round(float(chosen.gather(1, target[:, None]).mean()), 4)))
    return result


def evaluate(
    model: LoadedModel, arguments: argparse.Namespace, folders: Sequence[Path], out: Path
) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {line["sample"] for line in lines}
    chosen = list(methods(folders))
    with out.open("a") as file:
        for task in Ruler(arguments.length, arguments.evaluate, seed=42).tasks(model.tokenizer, arguments.samples):
            for sample in task.samples:
                if sample.id in done:
                    continue
                context, question = model.prompt_ids(sample.context, sample.question, sample.answer_prefix)
                whole = compress(model, [context], observe=SCORERS)
                said = answer(model, whole, [question], sample.max_new_tokens, model.eos_ids)
                whole.rollback()
                tokens = said.tokens[0] + ([model.eos_ids[0]] if said.steps > len(said.tokens[0]) else [])
                score = float(next(iter(task.metric(model.decode(tokens), sample).values())))
                line: dict[str, Any] = {"sample": sample.id, "task": task.name, "full": score, "cells": {}}
                cells = list(product(chosen, arguments.budgets))
                for start in range(0, len(cells), ROWS):
                    some = cells[start : start + ROWS]
                    kept = [whole.select(Eviction(s, a, PROTECTION, Budget(budget))) for (_, _, s, a), budget in some]
                    for ((name, number, *_), budget), verdict in zip(
                        some, judge(model, whole.keeping(kept), question, tokens), strict=True
                    ):
                        line["cells"].setdefault(name, {}).setdefault(str(budget), {})[str(number)] = verdict
                lines.append(line)
                file.write(json.dumps(line) + "\n")
                file.flush()
    return lines


def values(lines: Sequence[dict[str, Any]], name: str, budget: float) -> np.ndarray:
    """[samples, calibration seeds, (same in per cent, lp)]."""
    found = np.array([list(line["cells"][name][str(budget)].values()) for line in lines])
    return found * [100, 1]


def table(lines: Sequence[dict[str, Any]], budgets: Sequence[float]) -> str:
    """same (95% interval over samples; range of the calibration seeds) lp."""
    rows = ["| method | " + " | ".join(f"{100 * b:g}%" for b in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for name in lines[0]["cells"]:
        cells = []
        for budget in budgets:
            same, lp = np.moveaxis(values(lines, name, budget), -1, 0)
            low, high = bootstrap_ci(same.mean(1))
            seeds = same.mean(0)
            spread = f"; {seeds.min():.0f}-{seeds.max():.0f}" if len(seeds) > 1 else ""
            cells.append(f"{same.mean():.1f} ({low:.0f}-{high:.0f}{spread}) {lp.mean():.2f}")
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def differences(lines: Sequence[dict[str, Any]], budgets: Sequence[float]) -> str:
    """Paired over samples, means over calibration seeds first: points of `same` with 95% interval."""
    own = [(f"{s}, lu_curve", f"{s}, lukv") for s in (*(s.name for s in SCORERS), PROBE.name)]
    pairs = [*own, ("utility_probe, lu_curve", "keydiff, lukv"), ("utility_probe, lu_curve", "keydiff, lu_curve")]
    rows = ["| difference | " + " | ".join(f"{100 * b:g}%" for b in budgets) + " |", "|---" * (len(budgets) + 1) + "|"]
    for one, other in pairs:
        cells = []
        for budget in budgets:
            first, second = (values(lines, name, budget)[..., 0].mean(1) for name in (one, other))
            mean, (low, high), _ = paired_bootstrap(first, second)
            cells.append(f"{mean:+.1f} ({low:+.1f} to {high:+.1f})")
        rows.append(f"| {one} - {other} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def figure(lines: Sequence[dict[str, Any]], budgets: Sequence[float], path: Path) -> None:
    drawn = {}
    for name in lines[0]["cells"]:
        rows = []
        for budget in budgets:
            same = values(lines, name, budget)[..., 0].mean(1) / 100
            rows.append({"kept_share": budget, "score": float(same.mean()), "ci95": bootstrap_ci(same)})
        drawn[name] = rows
    title = f"Answers that stay exactly the full cache's, {len(lines)} samples"
    score_against("kept_share", drawn, None, title, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="models/tiny")
    parser.add_argument("--calibrate", nargs="+", default=["niah_single_1", "niah_multikey_2", "vt"], metavar="TASK")
    parser.add_argument("--evaluate", nargs="+", default=["niah_single_1", "niah_multikey_2", "vt"], metavar="TASK")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--contexts", type=int, default=8, help="calibration contexts of each task")
    parser.add_argument("--samples", type=int, default=20, help="evaluation samples of each task")
    parser.add_argument("--seeds", type=int, default=1, help="calibrations, each on samples of its own")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3, 0.5])
    parser.add_argument("--figure", type=Path, help="a PNG of the table")
    parser.add_argument("--power", type=float, default=1.5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = load(arguments.model)
    repeats = any(":" in task for task in arguments.calibrate)
    settings = OracleSettings(horizon=512, continuation="reference") if repeats else OracleSettings()
    folders = [arguments.out / f"calibration-{seed}" for seed in range(arguments.seeds)]
    for seed, folder in enumerate(folders):
        if not (folder / "utility_probe.curve.safetensors").exists():
            drawn = contexts_of(model, arguments.calibrate, arguments.length, arguments.contexts, 10042 + 1000 * seed)
            calibrate(model, list(drawn), replace(settings, seed=seed), arguments.power, folder)
    lines = evaluate(model, arguments, folders, arguments.out / "samples.jsonl")
    print(f"{len(lines)} samples; full cache: score {100 * np.mean([line['full'] for line in lines]):.1f}\n")
    print(table(lines, arguments.budgets) + "\n")
    print(differences(lines, arguments.budgets))
    if arguments.figure:
        figure(lines, arguments.budgets, arguments.figure)


if __name__ == "__main__":
    main()
