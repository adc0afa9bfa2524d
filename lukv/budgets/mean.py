"""From many (context, question) samples to one static table. The means are streamed: memory does not grow with samples.

`budgets` is the paper's way (arXiv 2602.08585): it solves every sample and averages the kept shares. `losses` averages
the loss curves and solves once. Up to the certificate, the result has the least expected loss of all static tables. An
average of solutions need not: each is the best for a sample that the table will not meet again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from lukv.budgets.solver import PRUNED_PERCENT, Solution, floor_of, hull_value, hulls, solve
from lukv.budgets.table import BudgetTable

RANK_BINS = 500
"""Resolution of the mean loss curve. The ranks of a context of any length are binned into steps of 0.2%."""

GAPS = np.logspace(-6, 1, 141)
"""Bin edges for the samples' certificates (loss / lower bound - 1), 20 to a decade."""


@dataclass
class MeanSolution:
    """Weighted means over samples.

    `state` holds all their sums as plain arrays. A mean that continues from a saved state ends with the same bits.
    """

    layers: int
    heads: int
    scope: Literal["global", "layer"] = "global"
    polish: bool = False
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(PRUNED_PERCENT)
        shapes = {
            "kept": (n, self.layers, self.heads),  # sums of the kept shares
            "curve": (self.layers, self.heads, RANK_BINS),  # sums of utility by rank, best first
            "loss": (n,),  # sums of the per-sample solutions' losses
            "bound": (n,),  # and lower bounds
            "gaps": (n, len(GAPS) + 1),  # how many samples have a certificate in each bin of GAPS
            "floor": (),  # sum of the floors, as shares of the context
            "tokens": (),  # sum of the context lengths
            "weight": (),
            "samples": (),
        }
        if not self.state:
            self.state = {name: np.zeros(shape) for name, shape in shapes.items()}
        if {name: array.shape for name, array in self.state.items()} != shapes:
            raise ValueError("the saved state of the means belongs to another model or version")

    def add(self, utility: np.ndarray, tokens: int, weight: float = 1.0) -> Solution:
        """Add one sample: utility [layers, K, n] of the unprotected tokens, best-ranked first, of a context of `tokens`
        tokens."""
        solution = solve(utility, tokens, scope=self.scope, polish=self.polish)
        floor = floor_of(tokens, tokens - utility.shape[2])
        parts: dict[str, Any] = {
            "kept": solution.kept / tokens,
            "curve": bin_by_rank(utility, tokens),
            "loss": solution.loss,
            "bound": solution.lower_bound,
            "floor": floor / tokens,
            "tokens": tokens,
            "weight": 1.0,
        }
        for name, value in parts.items():
            self.state[name] += weight * value
        loss, bound = solution.loss, solution.lower_bound
        none = np.where(loss > 0, np.inf, 0.0)
        gap = np.where(bound > 0, loss / np.where(bound > 0, bound, 1) - 1, none)
        self.state["gaps"][np.arange(len(gap)), np.searchsorted(GAPS, gap)] += 1
        self.state["samples"] += 1
        return solution

    def gaps(self, quantile: float) -> np.ndarray:
        """[99] float64: a quantile over the samples of how far their own solutions may be above the least loss.

        0.01 means 1%. Values are rounded up to 20 steps a decade; inf stands for more than 1000%.
        """
        reached = np.cumsum(self.state["gaps"], axis=1) >= quantile * self.state["samples"] - 1e-9
        return np.append(GAPS, np.inf)[reached.argmax(axis=1)]

    def mean(self, name: str) -> np.ndarray:
        """The weighted mean of one entry of `state`. Raises ValueError if there is no sample."""
        if not self.state["weight"] > 0:
            raise ValueError("no sample was measured: there is nothing to make a table of")
        return self.state[name] / self.state["weight"]

    def table(self, aggregation: Literal["budgets", "losses"], metadata: Mapping[str, Any]) -> BudgetTable:
        """The table, its expected loss over the samples, and a lower bound for any static table with these floors.

        The metadata gains the certificates of the samples' own solutions: their means (sample_loss,
        sample_lower_bound), and quantiles over the samples (sample_gaps, at most 99).
        """
        curve = self.mean("curve")
        floor = float(self.mean("floor")) * RANK_BINS
        if aggregation == "budgets":
            kept = self.mean("kept")
        elif aggregation == "losses":
            solution = solve(curve, RANK_BINS, math.ceil(floor - 1e-9), self.scope, self.polish)
            kept = solution.kept / RANK_BINS
        else:
            raise ValueError(f"aggregation={aggregation!r}: use 'budgets' or 'losses'")
        edges = hulls(curve.reshape(-1, RANK_BINS), RANK_BINS - math.floor(floor + 1e-9))
        discarded = (1 - kept).sum(axis=(1, 2)) * RANK_BINS
        own = {
            "sample_loss": self.mean("loss").tolist(),
            "sample_lower_bound": self.mean("bound").tolist(),
            "sample_gaps": {str(q): [round(float(x), 9) for x in self.gaps(q).clip(max=99)] for q in (0.5, 0.95, 1.0)},
        }
        return BudgetTable(
            kept,
            expected_loss=loss_beyond(curve, kept),
            lower_bound=hull_value(edges, discarded),
            curve=curve.astype(np.float32),
            metadata={**metadata, **own},
        )


def bin_by_rank(utility: np.ndarray, tokens: int) -> np.ndarray:
    """[layers, K, RANK_BINS] float64: the utility in each of RANK_BINS equal parts of the ranking of `tokens` tokens.

    utility [layers, K, n] belongs to the n unprotected tokens, best first. The tokens - n protected ones come before
    them, at utility 0: they are never discarded.
    """
    protected = np.zeros((*utility.shape[:2], tokens - utility.shape[2]))
    return sum_into_bins(np.concatenate([protected, utility], axis=2), RANK_BINS)


def sum_into_bins(ranked: np.ndarray, bins: int) -> np.ndarray:
    """[..., bins] float64: sums of ranked [..., n], best first, over `bins` equal parts of the ranking.

    A token that lies across a border counts in part on either side.
    """
    tokens = ranked.shape[-1]
    tail = np.zeros((*ranked.shape[:-1], tokens + 1))
    # summed from the worst token on: behind a large sum, small utilities would be lost to rounding
    tail[..., 1:] = np.cumsum(ranked[..., ::-1], axis=-1, dtype=np.float64)
    return np.diff(_interpolate(tail, np.arange(bins + 1) * (tokens / bins)), axis=-1)[..., ::-1]


def loss_beyond(curve: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[targets] float64: the utility that is not kept.

    curve [layers, K, M]: utility in M equal parts of the ranking, best first. kept [targets, layers, K]: shares.
    """
    bins = curve.shape[2]
    tail = np.zeros((*curve.shape[:2], bins + 1))
    tail[..., 1:] = np.cumsum(curve[..., ::-1], axis=2)
    discarded = np.moveaxis((1 - kept) * bins, 0, -1)
    return _interpolate(tail, discarded).sum(axis=(0, 1))


def _interpolate(curve: np.ndarray, x: np.ndarray) -> np.ndarray:
    """curve [..., n + 1], whose values stand at 0 .. n, linearly interpolated at x [..., m] (leading dimensions are
    broadcast)."""
    x = np.broadcast_to(x, (*curve.shape[:-1], x.shape[-1]))
    below = np.minimum(x.astype(np.int64), curve.shape[-1] - 2)
    low, high = (np.take_along_axis(curve, below + i, axis=-1) for i in (0, 1))
    return low + (x - below) * (high - low)
