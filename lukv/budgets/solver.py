"""LU-KV's solver: head budgets that discard the least utility, for all targets at once, with a certificate.

arXiv 2602.08585. Each KV head has a loss curve: Loss(m) is the summed utility of its m worst-ranked tokens. The lower
convex hull of this curve is the isotonic regression (PAVA) of the utilities in discard order. The blocks of the
regression are the edges of the hull: each has a number of tokens and one price per token.

The greedy solution always discards the cheapest next token; the paper keeps a heap for it. Prices rise along a head's
hull, so the same order comes from one sort of the edges of all heads, and each target is a prefix of it.

If a target falls inside an edge, that edge's head is not on its hull. The hulls' value is then a lower bound on the
loss of any allocation, and the loss of the returned one an upper bound. They differ by at most the gap between this
head's curve and its hull.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import isotonic_regression

PRUNED_PERCENT = np.arange(1, 100)
"""The grid of every budget table: how much of all heads together is pruned, in per cent."""


@dataclass(frozen=True)
class Hulls:
    """The hull edges of N heads, flat and head by head, cheapest first within a head."""

    head: np.ndarray  # int64, which head
    start: np.ndarray  # int64, tokens of this head discarded before this edge
    size: np.ndarray  # int64, tokens on the edge
    loss: np.ndarray  # float64, their summed utility
    price: np.ndarray  # float64, loss per token: rises strictly within a head


@dataclass(frozen=True)
class Solution:
    """Budgets at the targets of the grid.

    kept [targets, layers, K] int64: tokens, the protected ones included. loss [targets] float64: the utility that
    `kept` discards. lower_bound [targets] float64: no allocation discards less.
    """

    kept: np.ndarray
    loss: np.ndarray
    lower_bound: np.ndarray


def floor_of(tokens: int, protected: int) -> int:
    """Tokens that every head keeps at any target: max(round-half-up(0.01 L), sink + recent), at most L."""
    return min(tokens, max((tokens + 50) // 100, protected))


def kept_total(entries: int) -> np.ndarray:
    """[99] int64: how many of `entries` are kept at 1% .. 99% pruning (round half up, in integers)."""
    return (2 * (100 - PRUNED_PERCENT) * entries + 100) // 200


@np.errstate(over="ignore")  # a sum that overflows raises an error of its own
def solve(
    utility: np.ndarray,
    tokens: int,
    floor: int | None = None,
    scope: Literal["global", "layer"] = "global",
    polish: bool = False,
) -> Solution:
    """The head budgets of one sample that discard the least utility, at every target of the grid.

    utility [layers, K, n] >= 0 belongs to the unprotected tokens, best-ranked first. `tokens` is the context's length
    L; the other L - n tokens are protected and always kept. Every head keeps at least `floor` tokens (default
    `floor_of`), even if the floors exceed a target.

    `scope="layer"` gives every layer the same share. `polish` improves targets that fall inside an edge: the rest goes
    to the one head where it costs least. Of equal prices the lower (layer, head) discards first. Raises ValueError for
    an impossible floor or scope, and for utilities that are negative or not finite.
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
    """Hulls of the loss curves of utility [N, n], best-ranked first, over the first `limit` discards (default n).

    The curve ends at the head's floor: a hull that reached further would price tokens that can never be discarded.
    Raises ValueError for utilities that are negative or not finite, or whose sum is not finite.
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
        if (row[1:] > row[:-1]).all():  # ranked perfectly: every token is an edge, and PAVA is not needed
            starts.append(np.arange(number * limit, (number + 1) * limit))
            losses.append(row)
            continue
        begin = isotonic_regression(row).blocks[:-1]
        starts.append(begin + number * limit)
        losses.append(np.add.reduceat(row, begin))  # summed anew, because the running means of PAVA drift
    start, loss = np.concatenate(starts), np.concatenate(losses)
    _require_finite(loss.sum())
    while True:  # after rounding, neighbours may have the same price: they are merged until prices rise strictly
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


def sort_by_price(price: np.ndarray) -> np.ndarray:
    """Stable argsort: equal prices stay in the order of heads. The unstable sort is several times faster (SIMD), and
    equal prices are few, so these are put in order afterwards."""
    order = np.argsort(price)
    sorted_price = price[order]
    equal = sorted_price[1:] == sorted_price[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.insert(equal, 0, False))
        order[tied] = order[tied][np.lexsort((order[tied], sorted_price[tied]))]
    return order


def hull_value(edges: Hulls, discard: np.ndarray) -> np.ndarray:
    """The loss of discarding `discard` tokens (any real numbers) from all heads, if every head were on its hull.

    It is a lower bound for whole tokens.
    """
    order = sort_by_price(edges.price)
    gone, paid = (np.concatenate([[0.0], np.cumsum(part[order])]) for part in (edges.size, edges.loss))
    return np.interp(discard, gone, paid)


def _solve_group(utility: np.ndarray, limit: int, discard: np.ndarray, polish: bool) -> tuple[np.ndarray, ...]:
    """Discards [targets, N], loss [targets] and lower bound [targets] of N heads. Each may discard `limit` tokens; the
    targets `discard` [targets] are tokens in total, ascending."""
    edges = hulls(utility, limit)
    price = edges.price
    order = sort_by_price(price)
    heads, size = len(utility), edges.size[order]
    gone, paid = (np.concatenate([[0], np.cumsum(part)]) for part in (size, edges.loss[order]))
    whole = np.searchsorted(gone[1:], discard, side="right")  # how many whole edges each target discards
    # a whole edge counts at every target that reaches its end: count it at the first one, then sum over targets
    first = np.repeat(np.arange(len(discard)), np.diff(whole, prepend=0)) * heads
    first += edges.head[order[: len(first)]]
    spent = np.bincount(first, weights=size[: len(first)], minlength=len(discard) * heads)
    counts = np.cumsum(spent.reshape(-1, heads), axis=0).astype(np.int64)
    rest = discard - gone[whole]
    upper, lower = paid[whole], paid[whole]
    curves = _loss_curves(utility, limit) if polish else None
    for target in np.flatnonzero(rest):
        edge = order[whole[target]]
        take, cut = int(rest[target]), edges.head[edge]
        lower[target] += take * price[edge]
        if curves is not None:
            counts[target], added = _polish(curves, counts[target], take, cut, int(edges.size[edge]))
        else:
            counts[target, cut] += take
            begin = utility.shape[1] - edges.start[edge]
            added = utility[cut, begin - take : begin].sum(dtype=np.float64)
        upper[target] += added
    return counts, upper, lower


def _loss_curves(utility: np.ndarray, limit: int) -> np.ndarray:
    """[N, limit + 1] float64: the loss curves."""
    curve = np.zeros((len(utility), limit + 1))
    np.cumsum(utility[:, ::-1][:, :limit], axis=1, out=curve[:, 1:])
    return curve


def _polish(curve: np.ndarray, counts: np.ndarray, take: int, cut: int, size: int) -> tuple[np.ndarray, float]:
    """The better of two ways to discard `take` more tokens: the new counts [N], and the loss that they add.

    The first discards them from the one head where they cost least. The second discards the whole edge that the target
    cuts, `size` tokens of head `cut`, and gives size - take tokens back to the one head that gains most.
    """
    heads, back = np.arange(len(counts)), size - take
    more = np.where(counts + take < curve.shape[1], 0.0, np.inf)
    more += curve[heads, np.minimum(counts + take, curve.shape[1] - 1)] - curve[heads, counts]
    spent = counts + np.where(heads == cut, size, 0)
    less = np.where(spent >= back, curve[cut, spent[cut]] - curve[cut, counts[cut]], np.inf)
    less += curve[heads, np.maximum(spent - back, 0)] - curve[heads, spent]
    if more.min() <= less.min():
        return counts + np.where(heads == more.argmin(), take, 0), float(more.min())
    return spent - np.where(heads == less.argmin(), back, 0), float(less.min())
