"""From many (context, question) samples to one static table, streaming: memory does not grow with their number.

`budgets` is the paper's way (arXiv 2602.08585): solve every sample, average the kept shares. `losses` solves once, on
the mean loss curve: of all static tables the one with the least expected loss (up to the certificate), where the
former is a mean of answers to questions that the table will never be asked.
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
"""Resolution of the mean loss curve: contexts of all lengths are laid on a grid of ranks of 0.2% each."""

GAPS = np.logspace(-6, 1, 141)
"""Bins of the samples' certificates (loss / lower bound - 1), 20 a decade."""


@dataclass
class MeanSolution:
    """Weighted means over samples. `state` (plain arrays) is all there is to save; a mean that goes on from it adds
    up to the same bits."""

    layers: int
    heads: int
    scope: Literal["global", "layer"] = "global"
    polish: bool = False
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(PRUNED_PERCENT)
        shapes = {
            "kept": (n, self.layers, self.heads),  # sums of kept shares
            "curve": (self.layers, self.heads, RANK_BINS),  # sums of utility by rank, best first
            "loss": (n,),  # sums of the per-sample solutions' losses
            "bound": (n,),  # and lower bounds
            "gaps": (n, len(GAPS) + 1),  # how many samples have loss / bound - 1 up to each of GAPS, and beyond
            "floor": (),  # sum of the floors' shares
            "tokens": (),  # sum of the context lengths
            "weight": (),
            "samples": (),
        }
        if not self.state:
            self.state = {name: np.zeros(shape) for name, shape in shapes.items()}
        if {name: array.shape for name, array in self.state.items()} != shapes:
            raise ValueError("the saved state of the means belongs to another model or version")

    def add(self, utility: np.ndarray, tokens: int, weight: float = 1.0) -> Solution:
        """One sample: utility [layers, K, n] of its unprotected tokens, best-ranked first, of a context of
        `tokens`."""
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
        """[99] float64: at most so far above the least possible loss (0.01: 1%) lies this share of the samples' own
        solutions (rounded up to 20 steps a decade; inf: beyond 1000%)."""
        reached = np.cumsum(self.state["gaps"], axis=1) >= quantile * self.state["samples"] - 1e-9
        return np.append(GAPS, np.inf)[reached.argmax(axis=1)]

    def mean(self, name: str) -> np.ndarray:
        if not self.state["weight"] > 0:
            raise ValueError("no sample was measured: there is nothing to make a table of")
        return self.state[name] / self.state["weight"]

    def table(self, aggregation: Literal["budgets", "losses"], metadata: Mapping[str, Any]) -> BudgetTable:
        """The table, its expected loss over the samples, and the least that any static table with these floors has.

        The metadata gains the certificates of the samples' own solutions: means (sample_loss, sample_lower_bound) and
        quantiles over the samples (sample_gaps, at most 99).
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
    """[layers, K, RANK_BINS] float64: the utility [layers, K, n] (best first, after tokens - n protected tokens of price
    0) that lies in each of RANK_BINS equal parts of the ranking of `tokens` tokens."""
    protected = np.zeros((*utility.shape[:2], tokens - utility.shape[2]))
    return sum_into_bins(np.concatenate([protected, utility], axis=2), RANK_BINS)


def sum_into_bins(ranked: np.ndarray, cells: int) -> np.ndarray:
    """[..., cells] float64: sums of ranked [..., n] (best first) over `cells` equal parts of the ranking; a token
    across a border counts in parts."""
    tokens = ranked.shape[-1]
    tail = np.zeros((*ranked.shape[:-1], tokens + 1))
    # summed from the worst token: small ones would drown in a head's sum
    tail[..., 1:] = np.cumsum(ranked[..., ::-1], axis=-1, dtype=np.float64)
    return np.diff(_at(tail, np.arange(cells + 1) * (tokens / cells)), axis=-1)[..., ::-1]


def loss_beyond(curve: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """[targets] float64: utility beyond the kept shares [targets, layers, K] on curves [layers, K, M], best first."""
    cells = curve.shape[2]
    tail = np.zeros((*curve.shape[:2], cells + 1))
    tail[..., 1:] = np.cumsum(curve[..., ::-1], axis=2)
    place = np.moveaxis((1 - kept) * cells, 0, -1)
    return _at(tail, place).sum(axis=(0, 1))


def _at(curve: np.ndarray, place: np.ndarray) -> np.ndarray:
    """curve [..., n + 1] at the real places 0 .. n (broadcast over the leading dimensions), linear in between."""
    place = np.broadcast_to(place, (*curve.shape[:-1], place.shape[-1]))
    below = np.minimum(place.astype(np.int64), curve.shape[-1] - 2)
    low, high = (np.take_along_axis(curve, below + i, axis=-1) for i in (0, 1))
    return low + (place - below) * (high - low)
