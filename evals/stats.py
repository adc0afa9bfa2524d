"""How sure a mean is: seeded bootstrap intervals."""

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


def bootstrap_ci(
    values: Sequence[float] | np.ndarray, seed: int = 0, resamples: int = RESAMPLES, level: float = LEVEL
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean: (low, high), the same for the same seed.

    Deterministic scores (all equal) give a point. Of one sample nothing can be said: the interval is that value too.
    """
    array = check(values)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(resampled_means(array, seed, resamples), [tail, 100 - tail])
    return float(low), float(high)


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
    return verdict(float(differences.mean()), resampled_means(differences, seed, resamples), len(one), level)


def verdict(mean: float, draws: np.ndarray, n: int, level: float = LEVEL) -> tuple[float, tuple[float, float], float]:
    """(mean, interval, two-sided p value) of a difference over `n` samples whose bootstrap draws are given.

    Few samples that all point one way leave no draw on the other side of 0, which says nothing: p is at least that of
    a sign test in which all n agree, 2^(1 - n). So one sample has p = 1, and below 6 nothing is significant at .05.
    """
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(draws, [tail, 100 - tail])
    below = np.mean(draws < 0) + np.mean(draws == 0) / 2
    p = min(1.0, max(2 * min(below, 1 - below), 1 / len(draws), 2.0 ** (1 - n)))
    return mean, (float(low), float(high)), float(p)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979): below .05 they are so together."""
    out, least = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[i]))
        out[i] = least
    return out
