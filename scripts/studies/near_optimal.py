"""How near to the best possible budgets is the greedy solution?

    python -m scripts.studies.near_optimal --samples 4

The samples are those of the embedded model's calibration tasks. The utility curve of each head is binned into 40 bins.
The budgets are then solved twice: by the greedy of lukv/budgets/solver.py, and by exact dynamic programming over all
heads, which gives the optimum among all allocations in whole bins. For each budget it prints how much more utility the
greedy discards, and what the certificate (hull bound) alone would have promised.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

from baselines.expected_attention import ExpectedAttention
from baselines.keydiff import KeyDiff
from baselines.snapkv import SnapKV
from evals.ruler import Ruler
from evals.text import table
from lukv.budgets.oracle import UtilityOracle
from lukv.budgets.solver import PRUNED_PERCENT, solve
from lukv.model import load
from lukv.selection import Protection

BINS = 40
BUDGETS = (0.5, 0.3, 0.2, 0.1, 0.05)


def best_losses(curves: np.ndarray) -> np.ndarray:
    """[N * BINS + 1]: the least loss of discarding so many bins in total, exactly.

    curves [N, BINS + 1]: each head's loss by bins discarded. The heads are added one by one (min-plus convolution).
    """
    best = curves[0]
    for curve in curves[1:]:
        longer = np.full(len(best) + len(curve) - 1, np.inf)
        for discarded, loss in enumerate(curve):
            at = slice(discarded, discarded + len(best))
            longer[at] = np.minimum(longer[at], best + loss)
        best = longer
    return best


def measure_losses(utility: np.ndarray) -> np.ndarray:
    """[4, budgets]: the loss of the greedy, of the polished greedy and of the optimum, and the certificate's bound.

    utility [layers, K, BINS] is in bins of equally many tokens.
    """
    solution, polished = (solve(utility, BINS, floor=0, polish=polish) for polish in (False, True))
    heads = utility.reshape(-1, BINS)
    curves = np.concatenate([np.zeros((len(heads), 1)), np.cumsum(heads[:, ::-1], axis=1)], axis=1)
    optimum = best_losses(curves)
    rows = [int(np.flatnonzero(np.round(100 * (1 - b)) == PRUNED_PERCENT)[0]) for b in BUDGETS]
    discarded = heads.size - solution.kept[rows].sum(axis=(1, 2))
    return np.stack([solution.loss[rows], polished.loss[rows], optimum[discarded], solution.lower_bound[rows]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=4, help="of each task")
    arguments = parser.parse_args()
    model = load("models/tiny", "tiny", "float32")
    protections = {
        KeyDiff(): Protection(4, 1),
        ExpectedAttention(name="expected_attention", sink=4, future=512, eps=0.02): Protection(4, 1),
        SnapKV(name="snapkv", window=32, kernel=7, pool="max", order="pool_then_group"): Protection(4, 32),
    }
    found: dict[str, list[np.ndarray]] = {scorer.name: [] for scorer in protections}
    oracle = UtilityOracle(model)
    for task in Ruler(length=1024, seed=10042).tasks(model.tokenizer, arguments.samples):
        for sample in task.samples:
            context, question = model.prompt_ids(sample.context, sample.question, sample.answer_prefix)
            measured = oracle.prefill(context, list(protections))
            utility = measured.utility(question)
            for scorer, protection in protections.items():
                whole = protection.over(scorer)
                order = measured.order(scorer, protection)[..., whole.sink + whole.recent :]
                ranked = utility.gather(-1, order).numpy()
                cut = ranked.shape[2] // BINS * BINS  # the best-ranked remainder is left out, so that bins are equal
                bins = ranked[..., -cut:].reshape(*ranked.shape[:2], BINS, -1).sum(-1)
                found[scorer.name].append(measure_losses(bins.astype(np.float64)))
    rows = [
        [
            "scorer",
            "budget",
            "greedy above the optimum: median",
            "largest",
            "polished: median",
            "largest",
            "bound below",
        ]
    ]
    for name, measurements in found.items():
        greedy, polished, optimum, bound = np.stack(measurements, axis=1)  # each [samples, budgets]
        for index, budget in enumerate(BUDGETS):
            best = optimum[:, index]
            above = [100 * (loss[:, index] / best - 1) for loss in (greedy, polished)]
            below = 100 * (1 - bound[:, index] / best)
            columns = [f(a) for a in above for f in (np.median, np.max)]
            rows.append([name, f"{budget:g}", *(f"{x:.3f}%" for x in [*columns, np.median(below)])])
    print(f"{len(next(iter(found.values())))} samples, {model.layers} x {model.kv_heads} heads, {BINS} bins a head")
    print(table(rows))


if __name__ == "__main__":
    with torch.inference_mode():
        main()
