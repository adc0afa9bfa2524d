"""How sure a mean is, and a difference of means: seeded intervals and p values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


def resampled_means(values: np.ndarray, seed: int, resamples: int) -> np.ndarray:
    """Means of `resamples` samples drawn with replacement: values [n] -> [resamples], or [n, k] -> [resamples, k], all
    columns by the same draws. In float64 and in blocks of bounded memory."""
    rng, n, means = np.random.default_rng(seed), len(values), []
    block = max(1, 4_000_000 // n)
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        times = np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n)  # that each value is drawn
        means.append(times @ values / n)
    return np.concatenate(means)


def check(values: Sequence[float] | np.ndarray) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(
            f"scores must be a list of finite numbers, at least one; got {array.size} of shape {array.shape}"
        )
    return array


def mean_interval(
    groups: Sequence[Sequence[float] | np.ndarray], seed: int = 0, draws: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the mean of the groups' means (a benchmark's tasks; one group: of its mean), for scores in 0..1.

    Scores that are all 1 do not show that the truth is 1: a bootstrap repeats only what it saw, and its interval is a
    point there. Here the end of the scale counts as one more sample that was not seen: 0 for the low end of the
    interval, 1 for the high end.

    One group: the quantiles of sum_i w_i x_i + w_0 * end, w ~ Dirichlet(1, ..., 1) over the n + 1 values (Gaffke 2005;
    Learned-Miller and Thomas 2019, arXiv 1905.06208). For scores of 0 and 1 this is Clopper and Pearson's exact
    interval, which is computed without draws. For other scores no case is known in which it holds the truth too rarely.
    Several groups: each is drawn within itself, and the unseen sample is one for all, with the weight of a sample of
    the smallest group: share b ~ Beta(1, groups * smallest n). A drawn mean of n values varies sqrt((n - 1) / (n + 1))
    times as much as it should, which is made up for (Rao and Wu 1988). Groups of one sample show no spread of their
    own and are drawn together as one group. How often it holds: docs/reliability.md.

    Raises ValueError for scores outside 0..1, for none, and for what is not finite.
    """
    arrays = [np.sort(check(values)) for values in groups]  # the same scores in any order have one interval
    if not arrays or any(array.min() < 0 or array.max() > 1 for array in arrays):
        raise ValueError("scores must be between 0 and 1, in at least one group")
    singles = [array for array in arrays if len(array) == 1]
    weighted = [(array, 1 / len(arrays)) for array in arrays if len(array) > 1]
    if singles:
        weighted.append((np.concatenate(singles), len(singles) / len(arrays)))
    tail = (1 - level) / 2
    if len(weighted) == 1 and np.isin(weighted[0][0], (0, 1)).all():
        return clopper_pearson(int(weighted[0][0].sum()), len(weighted[0][0]), tail)
    rng = np.random.default_rng(seed)
    means = np.zeros(draws)
    for array, weight in weighted:
        n, drawn = len(array), weighted_means(array, rng, draws)
        if len(weighted) > 1 and n > 1:
            drawn = array.mean() + (drawn - array.mean()) * np.sqrt((n + 1) / (n - 1))
        means += weight * drawn
    unseen = rng.beta(1, min(len(array) / weight for array, weight in weighted), size=draws)
    low, high = np.quantile((1 - unseen) * means, tail), np.quantile((1 - unseen) * means + unseen, 1 - tail)
    return float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))


def clopper_pearson(successes: int, n: int, tail: float = (1 - LEVEL) / 2) -> tuple[float, float]:
    """The interval of all shares under which neither so many nor so few successes have a probability below `tail`."""
    from scipy.special import betaincinv  # not at the top: what is finished is printed without it

    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1 - tail)) if successes < n else 1.0
    return low, high


def weighted_means(values: np.ndarray, rng: np.random.Generator, draws: int) -> np.ndarray:
    """Means of `values` [n] under random weights ~ Dirichlet(1, ..., 1): [draws]. In blocks of bounded memory."""
    block = max(1, 4_000_000 // len(values))
    means = []
    for start in range(0, draws, block):
        weights = rng.standard_exponential((min(block, draws - start), len(values)))
        means.append(weights @ values / weights.sum(axis=1))
    return np.concatenate(means)


def paired_bootstrap(
    first: Sequence[float] | np.ndarray,
    second: Sequence[float] | np.ndarray,
    seed: int = 0,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> tuple[float, tuple[float, float], float]:
    """Is `first` better than `second` on the same samples? (mean difference, its interval, two-sided p value).

    p is twice the smaller share of resampled differences on one side of 0 (half of those equal to 0 on each side), at
    least 1 / resamples and 2^(1 - n).
    """
    one, other = check(first), check(second)
    if len(one) != len(other):
        raise ValueError(f"paired scores must be of the same samples: {len(one)} and {len(other)} were given")
    differences = one - other
    scale = max(1.0, float(np.abs([one, other]).max()))
    return verdict(float(differences.mean()), resampled_means(differences, seed, resamples), len(one), level, scale)


def verdict(
    mean: float, draws: np.ndarray, n: int, level: float = LEVEL, scale: float = 1.0
) -> tuple[float, tuple[float, float], float]:
    """(mean, interval, two-sided p value) of a difference over `n` samples whose bootstrap draws are given.

    A draw within `rounding_error(n)` of 0 is 0: 1/3 + 1/3 - 2/3 is, but for the last bit. `scale`: the largest score.
    Few samples that all point one way leave no draw on the other side of 0, which says nothing: p is at least that of
    a sign test in which all n agree, 2^(1 - n). So one sample has p = 1, and below 6 nothing is significant at .05.
    """
    draws = np.where(np.abs(draws) <= scale * rounding_error(n), 0.0, draws)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    below = np.mean(draws < 0) + np.mean(draws == 0) / 2
    p = min(1.0, max(2 * min(below, 1 - below), 1 / len(draws), 2.0 ** (1 - n)))
    return mean, (float(low), float(high)), float(p)


def rounding_error(n: int) -> float:
    """How far from the true value a mean of differences of `n` scores in 0..1 may be computed, in float64.

    A score comes from at most 8 operations (an F1 from 5), each off by half an epsilon: two scores and their
    difference are off by less than 10 epsilon. Adding up n products and dividing adds at most n + 2 epsilon (Higham
    2002, section 4.2), and so does a mean over tasks, whose samples n counts.
    """
    return float((n + 12) * np.finfo(np.float64).eps)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): below .05 they are so together."""
    out, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = least
    return out
