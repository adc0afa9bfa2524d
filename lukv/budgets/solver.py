"""LU-KV's solver: head budgets that minimise the utility thrown away, for all targets at once, with a certificate.

arXiv 2602.08585. Each KV head has a loss curve: Loss(m) = summed utility of its m worst-ranked tokens. Its lower
convex hull is the isotonic regression (PAVA) of the utilities in discard order, and the blocks of that regression are
the hull's edges: each a number of tokens and one price per token. A head's edges get dearer one by one, so always
discarding the cheapest next token (the paper's heap) is one sort of all heads' edges, and every target is a prefix of
that one order.

Where a target falls inside an edge the heads do not all sit on their hulls: the hull's value is a lower bound on the
loss of any allocation, the loss of the one returned an upper bound, and they differ by one head's hull gap at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

PRUNED_PERCENT = np.arange(1, 100)
"""The grid of every budget table: global pruning in per cent."""


@dataclass(frozen=True)
class Hulls:
    """The hull edges of N heads, flat and head by head, cheapest first within a head."""

    head: np.ndarray  # int64, which head
    start: np.ndarray  # int64, tokens of this head discarded before this edge
    size: np.ndarray  # int64, tokens on the edge
    loss: np.ndarray  # float64, their summed utility
    price: np.ndarray  # float64, loss a token: rises strictly within a head


@dataclass(frozen=True)
class Solution:
    """Budgets at the targets of the grid. kept [targets, layers, K] int64 counts tokens, the protected ones included;
    loss and lower_bound [targets] float64: utility thrown away by `kept`, and the least any allocation throws
    away."""

    kept: np.ndarray
    loss: np.ndarray
    lower_bound: np.ndarray


def floor_of(tokens: int, protected: int) -> int:
    """Tokens that every head keeps at any target: max(round-half-up(0.01 L), sink + window), at most L."""
    return min(tokens, max((tokens + 50) // 100, protected))


def kept_total(entries: int) -> np.ndarray:
    """[99] int64: of so many entries, how many stay at 1% .. 99% pruning (round half up, in integers)."""
    return (2 * (100 - PRUNED_PERCENT) * entries + 100) // 200


@np.errstate(over="ignore")  # a sum that overflows is refused by name
def solve(
    utility: np.ndarray,
    tokens: int,
    floor: int | None = None,
    scope: Literal["global", "layer"] = "global",
    polish: bool = False,
) -> Solution:
    """The cheapest head budgets of one sample at every target of the grid.

    utility [layers, K, n] >= 0: what each unprotected token is worth, best-ranked first. `tokens` = L, the context's
    length: the L - n others are protected and always kept. Every head keeps at least `floor` tokens (default
    `floor_of`); where the floors exceed a target, the floors are what is kept. `scope="layer"` gives each layer the
    same share. `polish` hands what is left of a cut edge to the single head that takes it best. Equal prices: the
    lower (layer, head) discards first.
    """
    layers, heads, free = utility.shape
    protected = tokens - free
    floor = floor_of(tokens, protected) if floor is None else floor
    if not protected <= floor <= tokens:
        raise ValueError(f"a floor of {floor} tokens is impossible: {protected} of {tokens} are protected")
    if scope not in ("global", "layer"):
        raise ValueError(f"scope={scope!r}: use 'global' or 'layer'")
    groups = utility.reshape((1, layers * heads, free) if scope == "global" else (layers, heads, free))
    discard = np.minimum(
        groups.shape[1] * tokens - kept_total(groups.shape[1] * tokens), groups.shape[1] * (tokens - floor)
    )
    parts = [_solve_group(group, tokens - floor, discard, polish) for group in groups]
    loss, bound = (np.sum([part[i] for part in parts], axis=0) for i in (1, 2))
    _require_finite(loss)
    kept = tokens - np.concatenate([part[0] for part in parts], axis=1)
    return Solution(kept.reshape(-1, layers, heads), loss, bound)


@np.errstate(over="ignore")
def hulls(utility: np.ndarray, limit: int | None = None) -> Hulls:
    """Hulls of the loss curves of utility [N, n] (best-ranked first) over the first `limit` discards (default n).

    Only discards that are allowed are on the curve: a hull that reached past a head's floor would price tokens that
    can never go. Raises ValueError for utilities that are negative, not finite, or whose sum is not.
    """
    limit = utility.shape[1] if limit is None else limit
    if limit == 0 or not len(utility):
        none = np.zeros(0, dtype=np.int64)
        return Hulls(none, none, none, np.zeros(0), np.zeros(0))
    cost = np.ascontiguousarray(utility[:, ::-1][:, :limit], dtype=np.float64)
    wrong = np.flatnonzero(~(cost.min(axis=1) >= 0))
    if len(wrong):
        raise ValueError(f"utilities must not be negative or NaN (head {wrong[0]})")
    starts, losses = [], []
    for number, row in enumerate(cost):
        if (row[1:] > row[:-1]).all():  # ranked perfectly: every token is an edge, PAVA is spared
            starts.append(np.arange(number * limit, (number + 1) * limit))
            losses.append(row)
            continue
        begin = isotonic_regression(row).blocks[:-1]
        starts.append(begin + number * limit)
        losses.append(np.add.reduceat(row, begin))  # anew from the block's ends: PAVA's running means drift
    start, loss = np.concatenate(starts), np.concatenate(losses)
    _require_finite(loss.sum())
    while True:  # rounding may leave neighbours of (nearly) one price: one edge, so that prices rise strictly
        size = np.diff(start, append=cost.size)
        price = loss / size
        head = start // limit
        first = np.flatnonzero((price[1:] > price[:-1]) | (head[1:] != head[:-1])) + 1
        if len(first) + 1 == len(start):
            return Hulls(head, start - head * limit, size, loss, price)
        first = np.concatenate([[0], first])
        start, loss = start[first], np.add.reduceat(loss, first)


def _require_finite(loss: np.ndarray) -> None:
    if not np.isfinite(loss).all():
        raise ValueError("utilities must be finite, and so must their sum over all heads")


def cheapest_first(price: np.ndarray) -> np.ndarray:
    """Stable argsort: equal prices stay in the order of heads. The unstable one is several times faster (SIMD) and
    equal prices are few, so they are put in order afterwards."""
    order = np.argsort(price)
    sorted_price = price[order]
    equal = sorted_price[1:] == sorted_price[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
        order[tied] = order[tied][np.lexsort((order[tied], sorted_price[tied]))]
    return order


def hull_value(edges: Hulls, discard: np.ndarray) -> np.ndarray:
    """The least loss of `discard` tokens (any real numbers) from the heads together, if every head sat on its hull: a
    lower bound for whole numbers."""
    order = cheapest_first(edges.price)
    gone, paid = (np.concatenate([[0.0], np.cumsum(part[order])]) for part in (edges.size, edges.loss))
    return np.interp(discard, gone, paid)


def _solve_group(utility: np.ndarray, limit: int, discard: np.ndarray, polish: bool) -> tuple[np.ndarray, ...]:
    """Discards [targets, N], loss and lower bound [targets] for N heads that may each discard `limit` tokens, at
    ascending targets of `discard` tokens in total."""
    edges = hulls(utility, limit)
    price = edges.price
    order = cheapest_first(price)
    heads, size = len(utility), edges.size[order]
    gone, paid = (np.concatenate([[0], np.cumsum(part)]) for part in (size, edges.loss[order]))
    whole = np.searchsorted(gone[1:], discard, side="right")  # edges spent whole at each target
    # an edge is spent at every target that reaches its end: count it at the first, sum over targets
    first = np.repeat(np.arange(len(discard)), np.diff(whole, prepend=0)) * heads
    first += edges.head[order[: len(first)]]
    spent = np.bincount(first, weights=size[: len(first)], minlength=len(discard) * heads)
    counts = np.cumsum(spent.reshape(-1, heads), axis=0).astype(np.int64)
    rest = discard - gone[whole]
    upper, lower = paid[whole], paid[whole]
    prefix = _prefix_sums(utility, limit) if polish else None
    for target in np.flatnonzero(rest):
        edge = order[whole[target]]
        take, cut = int(rest[target]), edges.head[edge]
        lower[target] += take * price[edge]
        if prefix is not None:
            counts[target], added = _place(prefix, counts[target], take, cut, int(edges.size[edge]))
        else:
            counts[target, cut] += take
            begin = utility.shape[1] - edges.start[edge]
            added = utility[cut, begin - take : begin].sum(dtype=np.float64)
        upper[target] += added
    return counts, upper, lower


def _prefix_sums(utility: np.ndarray, limit: int) -> np.ndarray:
    """[N, limit + 1] float64: the loss curves themselves."""
    curve = np.zeros((len(utility), limit + 1))
    np.cumsum(utility[:, ::-1][:, :limit], axis=1, out=curve[:, 1:])
    return curve


def _place(curve: np.ndarray, counts: np.ndarray, take: int, cut: int, size: int) -> tuple[np.ndarray, float]:
    """Polish: discard `take` more from the one head where that costs least, or spend the whole cut edge (`size`
    tokens of head `cut`) and give size - take tokens back to the one head that gains most. -> new counts, the loss
    added."""
    heads, back = np.arange(len(counts)), size - take
    more = np.where(counts + take < curve.shape[1], 0.0, np.inf)
    more += curve[heads, np.minimum(counts + take, curve.shape[1] - 1)] - curve[heads, counts]
    spent = counts + np.where(heads == cut, size, 0)
    less = np.where(spent >= back, curve[cut, spent[cut]] - curve[cut, counts[cut]], np.inf)
    less += curve[heads, np.maximum(spent - back, 0)] - curve[heads, spent]
    if more.min() <= less.min():
        return counts + np.where(heads == more.argmin(), take, 0), float(more.min())
    return spent - np.where(heads == less.argmin(), back, 0), float(less.min())
