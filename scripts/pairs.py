"""Every scorer under every allocator at one budget: what the cells in docs/data say of rankings and of budgets.

    y[s, a] = mean + scorer[s] + allocator[a] + rest[s, a]

`scorer` and `allocator` are the means of the rows and columns, less the mean of all. The shares of the variance that
the three terms have say how much is ranking, how much is budgets, and how much is that some of them go together.
Intervals come from drawing the benchmark's tasks anew: they say how far another choice of tasks would move a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.stats import rankdata

from evals.report.data import MEAN, Cell
from evals.report.runs import ALL
from evals.stats import LEVEL, RESAMPLES, resampled_means

EQUAL = "uniform"
"""The allocator of equal budgets, that the others are compared with."""

SEED = 0


@dataclass(frozen=True)
class Pairs:
    """scores [tasks, scorers, allocators] in 0..1; means: of (scorer, allocator), with its interval; full: the full
    cache's mean on the same samples; n: samples of each task."""

    scorers: tuple[str, ...]
    allocators: tuple[str, ...]
    tasks: tuple[str, ...]
    scores: np.ndarray
    means: dict[tuple[str, str], Cell]
    full: Cell
    n: tuple[int, ...]

    @property
    def total(self) -> int:
        return sum(self.n)

    def without(self, scorers: Sequence[str]) -> Pairs:
        """The same without the rows of these scorers."""
        kept = [i for i, name in enumerate(self.scorers) if name not in scorers]
        return replace(self, scorers=tuple(self.scorers[i] for i in kept), scores=self.scores[:, kept])

    @cached_property
    def drawn(self) -> np.ndarray:
        """[draws, scorers, allocators]: the means of tasks that are drawn with replacement."""
        flat = self.scores.reshape(len(self.tasks), -1)
        return resampled_means(flat, SEED, RESAMPLES).reshape(-1, *self.scores.shape[1:])

    def gains(self, allocator: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(mean, low, high) [scorers] each: what the allocator adds to the score of equal budgets under each scorer."""
        column, equal = self.allocators.index(allocator), self.allocators.index(EQUAL)
        low, high = interval(self.drawn[..., column] - self.drawn[..., equal])
        return (self.scores[..., column] - self.scores[..., equal]).mean(0), low, high


def find_pairs(cells: Sequence[Cell], budget: float, allocators: Sequence[str], name: str) -> Pairs:
    """The pairs at a budget, rows from the best mean to the least. Raises ValueError where one is missing, was run
    twice, or has other samples than the rest."""
    shown = [c for c in cells if c.budget == f"{budget:g}"]
    scorers = list(dict.fromkeys(c.scorer for c in shown))
    tasks = tuple(dict.fromkeys(c.task for c in shown if c.task != MEAN))
    by_place: dict[tuple[str, str, str], Cell] = {}
    for c in shown:
        place = c.scorer, c.allocator, c.task
        if place in by_place:
            runs = f"{by_place[place].run_id} and {c.run_id}"
            raise ValueError(f"docs/data/{name}.csv: {runs} are one pair: write it with report.py data --only PATTERN")
        by_place[place] = c
    wanted = [(s, a, t) for t in (MEAN, *tasks) for s in scorers for a in allocators]
    if missing := [place for place in wanted if place not in by_place]:
        raise ValueError(f"docs/data/{name}.csv lacks {' x '.join(missing[0])} at budget {budget:g}")
    if not wanted:
        raise ValueError(f"docs/data/{name}.csv has no cell at budget {budget:g}")
    counts = {t: {by_place[s, a, t].n for s in scorers for a in allocators} for t in tasks}
    full = [c for c in cells if c.budget == ALL and c.task == MEAN and {c.n} == {by_place[wanted[0]].n}]
    if any(len(n) > 1 for n in counts.values()) or len(full) != 1:
        raise ValueError(f"docs/data/{name}.csv: the pairs at budget {budget:g} and the full cache differ in samples")
    scores = np.array([[[by_place[s, a, t].score for a in allocators] for s in scorers] for t in tasks])
    order = np.argsort(-scores.mean((0, 2)), kind="stable")
    return Pairs(
        tuple(scorers[i] for i in order),
        tuple(allocators),
        tasks,
        scores[:, order],
        {(s, a): by_place[s, a, MEAN] for s in scorers for a in allocators},
        full[0],
        tuple(counts[t].pop() for t in tasks),
    )


def split_variance(means: np.ndarray) -> np.ndarray:
    """[..., 3]: the shares that scorers, allocators and their going together have in the variance of means
    [..., scorers, allocators]. 0 each where all means are the same."""
    centred = means - means.mean((-2, -1), keepdims=True)
    rows, columns = centred.mean(-1, keepdims=True), centred.mean(-2, keepdims=True)
    parts = [np.broadcast_to(part, means.shape) for part in (rows, columns, centred - rows - columns)]
    squares = np.stack([(part**2).mean((-2, -1)) for part in parts], -1)
    total = squares.sum(-1, keepdims=True)
    return np.divide(squares, total, out=np.zeros_like(squares), where=total > 1e-15)


def interval(draws: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ends of the 95% interval over the first axis."""
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def correlate(fidelity: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    """(rank correlation, low, high) of two values of each scorer. The interval draws the scorers anew; draws in which
    one of the two does not vary say nothing and are left out."""
    drawn = np.random.default_rng(SEED).integers(len(scores), size=(1000, len(scores)))
    found = correlate_ranks(np.vstack([fidelity, fidelity[drawn]]), np.vstack([scores, scores[drawn]]))
    low, high = interval(found[1:][np.isfinite(found[1:])])
    return float(found[0]), float(low), float(high)


def correlate_ranks(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """[rows]: Spearman's correlation of each row of x with that row of y; nan where one does not vary."""
    a, b = (rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y))
    size = np.sqrt((a**2).sum(1) * (b**2).sum(1))
    return np.divide((a * b).sum(1), size, out=np.full(len(a), np.nan), where=size > 0)
