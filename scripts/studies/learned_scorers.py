"""What learned scorers are worth on contexts that no fit has seen: the utility that is lost at equal budgets.

    python -m scripts.studies.learned_scorers [SAMPLES]     # of each task, 4 unless given: docs/beyond-embedded.md

Every head of the embedded model keeps the same share of a context, ranked by each scorer behind 4 sinks and before the
last token. What is lost is the utility of the tokens that are not kept, of all utility, in units of the layer's mean
value weight: the mean over the contexts. After it stands the paired difference from the utility probe with its 95%
interval (bootstrap over the contexts). The oracle's own ranking is the least that can be lost.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

from evals.ruler import Ruler
from lukv.allocation import Budget
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.model import LoadedModel, load
from lukv.named import find_model_settings
from lukv.selection import Protection
from models.tiny.tokenizer import FOLDER
from scripts.studies.fidelity import LEARNT, make_scorers

SEED = 30_042  # neither the calibrations' nor the benchmark's
SHARES = (0.05, 0.1, 0.2, 0.3)
SCORERS = ("utility_probe", "utility_mlp", "keydiff", "oracle")
PROTECTION = Protection(4, 1)


def lost_share(utility: Tensor, order: Tensor, share: float) -> float:
    """utility, order [layers, K, T]: what is worth nothing any more when each head keeps the first of its order."""
    kept = Budget(share=share).entries(utility.shape[-1], 1)
    return 1 - float(utility.gather(-1, order[..., :kept]).sum() / utility.sum())


def measure(loaded: LoadedModel, samples: int) -> dict[str, np.ndarray]:
    """Scorer -> [contexts, shares]."""
    oracle = UtilityOracle(loaded, OracleSettings())
    chosen = {s.name: s for s in make_scorers(SCORERS, loaded, find_model_settings(str(FOLDER)))}
    lost: dict[str, list[list[float]]] = {name: [] for name in chosen}
    for task in Ruler(length=1024, tasks=list(LEARNT), samples=samples, seed=SEED).tasks(loaded.tokenizer):
        for sample in task.samples:
            context, question = loaded.prompt_ids(sample.context, sample.question, sample.answer_prefix)
            measured = oracle.prefill(context, list(chosen.values()))
            utility = measured.utility(question)
            worth = (utility / measured.units).double()
            for name, scorer in chosen.items():
                order = measured.order(scorer, PROTECTION, utility if scorer.needs_answer else None)
                lost[name].append([lost_share(worth, order, share) for share in SHARES])
    return {name: np.array(rows) for name, rows in lost.items()}


def describe(lost: dict[str, np.ndarray]) -> list[str]:
    """The rows of the table."""
    count = len(lost["utility_probe"])
    drawn = np.random.default_rng(0).integers(count, size=(10_000, count))
    rows = [
        "| scorer | " + " | ".join(f"kept {share:.0%}" for share in SHARES) + " |",
        "|---" * (len(SHARES) + 1) + "|",
    ]
    for name, each in lost.items():
        cells = [f"{100 * value:.1f}" for value in each.mean(0)]
        if name != "utility_probe":
            apart = 100 * (each - lost["utility_probe"])
            low, high = np.quantile(apart[drawn].mean(1), (0.025, 0.975), axis=0)
            cells = [
                f"{c}, {m:+.1f} ({a:+.1f} to {b:+.1f})"
                for c, m, a, b in zip(cells, apart.mean(0), low, high, strict=True)
            ]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    return rows


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    lost = measure(load(FOLDER, dtype="float32"), int(arguments[0]) if arguments else 4)
    print(f"utility lost in per cent, {len(lost['utility_probe'])} contexts")
    print("\n".join(describe(lost)))


if __name__ == "__main__":
    main(sys.argv[1:])
