"""Does the objective predict accuracy? LU-KV minimises the utility that is thrown away; a user wants the score.

    python -m scripts.studies.predicted_loss --runs runs --samples 20

For every finished run on the embedded model, this measures the utility of what its method evicts, as a share of all
utility (lukv/budgets/oracle.py, with the full cache's greedy answer), over the first samples of each task. It prints
this share beside the run's score, then the rank correlation (Spearman) over runs with a 95% bootstrap interval, for all
budgets together and for each budget, and it writes a figure. No run is repeated.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
import yaml
from scipy.stats import spearmanr
from tqdm import tqdm

from evals.run.files import read_json
from evals.run.instantiate import create
from evals.text import percent, table
from lukv.allocation import Budget
from lukv.budgets.oracle import MeasuredContext, UtilityOracle
from lukv.model import LoadedModel, load
from lukv.selection import Eviction

FinishedRun = Mapping[str, Any]


def find_runs(runs: Path, experiment: str) -> list[FinishedRun]:
    """Results and settings of one experiment's finished evaluations whose scorer needs no question."""
    runs_found = []
    for path in sorted(runs.glob("*/result.json")):
        result = read_json(path)
        if result.get("experiment") != experiment:
            continue
        config = yaml.safe_load((path.parent / "config.yaml").read_text())
        if config["scorer"] is not None and not getattr(create(config["scorer"]), "needs_answer", False):
            runs_found.append({"result": result, "config": config})
    if not runs_found:
        raise SystemExit(f"no finished run of {experiment} in {runs}: python run.py experiment=embedded makes them")
    return runs_found


def make_eviction(config: Mapping[str, Any]) -> Eviction:
    parts = (create(config[key]) for key in ("scorer", "allocator", "protection"))
    return Eviction(*parts, Budget(config["budget"], config["budget_tokens"]))


def lost_share(measured: MeasuredContext, utility: torch.Tensor, eviction: Eviction) -> float:
    """The share of a context's utility [layers, K, T] that an eviction throws away."""
    gone = 0.0
    for index, layer in enumerate(measured.cache.evictable):
        keys, values = (x[:, : measured.tokens] for x in measured.cache.view_entries(index, 0))
        keep = eviction.keep(layer.view(0, keys, values, eviction.scorer))
        gone += float(utility[index][~keep].sum())
    return gone / float(utility.sum())


def predict_losses(model: LoadedModel, runs_found: Sequence[FinishedRun], samples: int) -> np.ndarray:
    """[runs] the mean share of utility that each run's method throws away; tasks weigh the same."""
    evictions = [make_eviction(run["config"]) for run in runs_found]
    scorers = list(dict.fromkeys(eviction.scorer for eviction in evictions))
    oracle = UtilityOracle(model)
    by_task = []
    for task in create(runs_found[0]["config"]["benchmark"]).tasks(model.tokenizer, samples):
        rows = []
        for sample in tqdm(task.samples, task.name, leave=False):
            context, question = model.prompt_ids(
                sample.context, sample.question, sample.answer_prefix, chat=sample.chat
            )
            measured = oracle.prefill(context, scorers)
            utility = measured.utility(question)
            rows.append([lost_share(measured, utility, eviction) for eviction in evictions])
        by_task.append(np.mean(rows, axis=0))
    return np.mean(by_task, axis=0)


def correlation(loss: np.ndarray, score: np.ndarray, resamples: int = 10_000) -> tuple[float, float, float]:
    """Spearman's rank correlation of loss and score over runs, and its bootstrap interval (runs drawn again)."""
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(resamples):
        index = rng.integers(len(loss), size=len(loss))
        if len(set(loss[index])) > 1 and len(set(score[index])) > 1:
            draws.append(spearmanr(loss[index], score[index]).statistic)
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(spearmanr(loss, score).statistic), float(low), float(high)


def draw(runs_found: Sequence[FinishedRun], loss: np.ndarray, score: np.ndarray, path: Path) -> None:
    _, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    budgets = np.array([run["config"]["budget"] for run in runs_found])
    for budget in sorted(set(budgets)):
        at = budgets == budget
        axes.scatter(100 * loss[at], 100 * score[at], s=18, label=f"budget {budget:g}")
    axes.set(xlabel="utility thrown away (% of all)", ylabel="mean score (%)")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    plt.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument(
        "--experiment", default="tiny__ruler_learnt-1024__n200__s0", help="the runs' `experiment` in result.json"
    )
    parser.add_argument("--samples", type=int, default=20, help="of each task")
    parser.add_argument("--figure", type=Path, default=Path("runs/report/predicted_loss.png"))
    arguments = parser.parse_args()
    runs_found = find_runs(arguments.runs, arguments.experiment)
    settings = runs_found[0]["config"]["model"]
    model = load(settings["path"], settings["name"], settings["dtype"])
    loss = predict_losses(model, runs_found, arguments.samples)
    score = np.array([run["result"]["score"] for run in runs_found])
    rows = [["run", "budget", "utility lost", "score"]]
    for index in np.argsort(loss):
        name, budget = runs_found[index]["result"]["run_id"].split("__")[1], runs_found[index]["config"]["budget"]
        rows.append([name, f"{budget:g}", percent(loss[index]), percent(score[index])])
    print(table(rows))
    budgets = np.array([run["config"]["budget"] for run in runs_found])
    for name, at in [("all budgets", budgets > 0), *((f"budget {b:g}", budgets == b) for b in sorted(set(budgets)))]:
        if at.sum() > 3:
            print("{}: rank correlation {:.2f} ({:.2f} .. {:.2f}), {} runs".format(
                name, *correlation(loss[at], score[at]), at.sum()
            ))  # fmt: skip
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    draw(runs_found, loss, score, arguments.figure)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
