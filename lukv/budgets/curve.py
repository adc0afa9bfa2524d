"""Head budgets from one solution of the mean loss curve ("LU-curve"). Not in the paper: see docs/beyond.md.

    u_h(j) = mean over contexts of the mean over their questions of U_h[token at rank j] ** p
    m_h    = u_h made non-increasing (PAVA): the slopes of the hull, best-ranked first
    n_h(b) = number of ranks j with m_h(j) >= tau, with tau such that the n_h sum to the budget exactly

U is the utility of lukv/budgets/oracle.py, in units of the layer's mean value weight, so that contexts of different
lengths weigh the same. LU-KV as published solves every sample and averages the budgets. Here the losses are averaged
and solved once, which gives the static policy of least expected loss. Budgets are nested: what is kept at one budget is
kept at every larger one.

A curve serves prompts of any length. Protected tokens have ranks of their own; the others are placed by their quantile
among the unprotected ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression

from lukv.allocation import Budget
from lukv.budgets.mean import bin_by_rank, loss_beyond, sum_into_bins
from lukv.budgets.solver import hull_value, hulls, kept_total
from lukv.budgets.table import BudgetTable, TableAllocator

QUANTILE_BINS = 1000
"""Resolution of a curve behind its protected ranks: steps of 0.1%."""


@dataclass
class MeanCurve:
    """The streaming mean u_h. `state` holds all its sums as plain arrays. A mean that continues from a saved state ends
    with the same bits. `protected`: how many tokens are protected (sink + recent); every context must be longer."""

    layers: int
    heads: int
    protected: int
    power: float = 1.5
    state: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {
            "protected": (self.layers, self.heads, self.protected),  # sums at each protected rank
            "free": (self.layers, self.heads, QUANTILE_BINS),  # sums by quantile of the other ranks
            "tokens": (),
            "weight": (),
        }
        if not self.state:
            self.state = {name: np.zeros(shape) for name, shape in shapes.items()}
        if {name: array.shape for name, array in self.state.items()} != shapes:
            raise ValueError("the saved state of the curve belongs to another model, protection or version")

    def add(self, utility: np.ndarray, weight: float = 1.0) -> None:
        """Add one sample: utility [layers, K, T] of a context's tokens, best-ranked first, protected ones included."""
        price = utility.astype(np.float64) ** self.power
        free = price[..., self.protected :]
        self.state["protected"] += weight * price[..., : self.protected]
        self.state["free"] += weight * sum_into_bins(free, QUANTILE_BINS) * (QUANTILE_BINS / free.shape[-1])
        self.state["tokens"] += weight * utility.shape[-1]
        self.state["weight"] += weight

    @property
    def tokens(self) -> int:
        """The mean context length, in whole tokens."""
        return max(round(float(self.state["tokens"] / self.state["weight"])), self.protected + 1)

    def knots(self) -> Knots:
        """The hulls of all heads. Raises ValueError if there is no sample."""
        if not self.state["weight"] > 0:
            raise ValueError("no sample was measured: there is nothing to make a curve of")
        price = np.concatenate([self.state["protected"], self.state["free"]], axis=2) / self.state["weight"]
        weight = np.ones(price.shape[2])
        weight[self.protected :] = (self.tokens - self.protected) / QUANTILE_BINS
        return Knots.of(price.reshape(-1, len(weight)), weight, self.protected)

    def table(self, metadata: Mapping[str, Any]) -> BudgetTable:
        """A BudgetTable of kind `curve`: the hulls' knots, and the grid of 99 budgets at the mean context length.

        Figures and other programs read the grid. Raises ValueError if there is no sample.
        """
        knots, tokens = self.knots(), self.tokens
        protected, free = (self.state[name] / self.state["weight"] for name in ("protected", "free"))
        entries = self.layers * self.heads * tokens
        kept = np.stack([knots.counts(int(total), tokens) for total in kept_total(entries)]) / tokens
        kept = kept.reshape(-1, self.layers, self.heads)
        rank = (np.arange(tokens - self.protected) + 0.5) * (QUANTILE_BINS / (tokens - self.protected))
        ranked = np.concatenate([protected, free[..., rank.astype(int)]], axis=2)
        curve = bin_by_rank(ranked, tokens)
        bins = curve.shape[2]
        bound = hull_value(hulls(curve.reshape(-1, bins)), (1 - kept).sum(axis=(1, 2)) * bins)
        return BudgetTable(
            kept,
            expected_loss=loss_beyond(curve, kept),
            lower_bound=bound,
            curve=curve.astype(np.float32),
            knots=knots.array(),
            metadata={**metadata, "kind": "curve", "power": self.power},
        )


@dataclass(frozen=True)
class Knots:
    """The hulls of all heads, flat and head by head, best-ranked first: from `start` on, a token is worth `price`.

    A start below `protected` is a rank. A start of `protected` + q is the quantile q of the unprotected ranks.
    """

    head: np.ndarray
    start: np.ndarray
    price: np.ndarray
    protected: int

    @classmethod
    def of(cls, price: np.ndarray, weight: np.ndarray, protected: int) -> Knots:
        """The hulls of price [heads, protected + QUANTILE_BINS], the utility of a token in each bin.

        weight [protected + QUANTILE_BINS] is the number of tokens that a bin stands for.
        """
        bins = price.shape[1] - protected
        ranks = np.concatenate([np.arange(protected), protected + np.arange(bins) / bins])
        heads, starts, prices = [], [], []
        for head, row in enumerate(price):
            begin = isotonic_regression(row, weights=weight, increasing=False).blocks[:-1]
            heads.append(np.full(len(begin), head))
            starts.append(ranks[begin])
            prices.append(np.add.reduceat(row * weight, begin) / np.add.reduceat(weight, begin))
        return cls(np.concatenate(heads), np.concatenate(starts), np.concatenate(prices), protected)

    def array(self) -> np.ndarray:
        """[knots, 3] float64: head, start, price."""
        return np.column_stack([self.head.astype(np.float64), self.start, self.price])

    def counts(self, total: int, tokens: int) -> np.ndarray:
        """[heads] int64 that sum to `total`: how many of each head's `tokens` ranks are among the `total` dearest.

        Rank 0 of every head comes first, whatever its price. Of equal prices the lower rank is kept first, then the
        lower head.
        """
        heads = int(self.head[-1]) + 1
        counts = (np.arange(heads) < total).astype(np.int64)
        if total <= heads:
            return counts
        protected = min(self.protected, tokens)
        free = tokens - protected
        behind = protected + np.ceil((self.start - self.protected) * free - 0.5)
        begin = np.where(self.start < self.protected, np.minimum(self.start, tokens), behind)
        begin = begin.clip(min=1).astype(np.int64)  # rank 0 is counted
        last = np.append(self.head[1:] != self.head[:-1], True)
        size = np.where(last, tokens, np.append(begin[1:], tokens)) - begin
        order = np.argsort(-self.price, kind="stable")
        reached = np.cumsum(size[order])
        rest = total - heads
        price = self.price[order[min(int(np.searchsorted(reached, rest)), len(order) - 1)]]
        counts += np.bincount(self.head, weights=size * (self.price > price), minlength=heads).astype(np.int64)
        tied = np.flatnonzero((self.price == price) & (size > 0))
        rank = np.concatenate([np.arange(size[i]) + begin[i] for i in tied]) if len(tied) else np.zeros(0, np.int64)
        owner = np.repeat(self.head[tied], size[tied])
        chosen = np.lexsort((owner, rank))[: total - int(counts.sum())]
        return counts + np.bincount(owner[chosen], minlength=heads)


@dataclass
class CurveAllocator(TableAllocator):
    """LU-curve's head budgets: exactly round(budget * layers * K * T) entries over all layers and heads.

    Every head keeps at least one entry if the budget has one for each. Raises ValueError for a table without a curve.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.table.knots is None:
            raise ValueError(f"{self.path} is a table of budgets, not a curve: allocator=budget_table reads it")
        head, self._start, self._price = self.table.knots.T
        self._head = head.astype(np.int64)

    def counts_at(self, budget: Budget, tokens: int) -> np.ndarray:
        about = self.table.metadata
        knots = Knots(self._head, self._start, self._price, about["sink"] + about["recent"])
        shape = self.table.layers, self.table.kv_heads
        return knots.counts(budget.entries(tokens, shape[0] * shape[1]), tokens).reshape(shape)
