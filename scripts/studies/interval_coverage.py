"""How often a 95% interval of evals.stats holds the truth, beside the percentile bootstrap that it replaced.

python -m scripts.studies.interval_coverage                # the table of docs/reliability.md, in five minutes

Every case is a world whose mean is known. It is drawn again and again, and the intervals that hold the mean are
counted. With 2000 repetitions a share of 95% is known to about one point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evals.stats import mean_interval, resampled_means

Groups = Sequence[np.ndarray]
Interval = Callable[..., tuple[float, float]]
THIRDS = np.arange(4) / 3


@dataclass(frozen=True)
class Case:
    """A benchmark whose true score `truth` is known; `draw` runs it once: the scores of each task."""

    name: str
    truth: float
    draw: Callable[[np.random.Generator], Groups]


def successes(shares: Sequence[float], sizes: Sequence[int]) -> Callable[[np.random.Generator], Groups]:
    """Tasks that are scored 0 or 1: the share of right answers and the number of samples of each."""
    return lambda rng: [(rng.random(n) < p).astype(float) for p, n in zip(shares, sizes, strict=True)]


def thirds(chances: Sequence[float], n: int) -> Callable[[np.random.Generator], Groups]:
    return lambda rng: [rng.choice(THIRDS, p=chances, size=n)]


def f1(a: float, b: float, n: int, tasks: int) -> Callable[[np.random.Generator], Groups]:
    """Scores as F1 and ROUGE give them: anything from 0 to 1, here beta distributed."""
    return lambda rng: [rng.beta(a, b, n) for _ in range(tasks)]


SPREAD = np.linspace(0.02, 0.98, 12)
CASES = (
    Case("one task, 50 samples, 98% right", 0.98, successes([0.98], [50])),
    Case("one task, 50 samples, 60% right", 0.6, successes([0.6], [50])),
    Case("one task, 50 samples in thirds, mean 96%", 0.96, thirds([0.02, 0.02, 0.02, 0.94], 50)),
    Case("one task, 20 scores in 0..1, mean 60%", 0.6, f1(0.3, 0.2, 20, 1)),
    Case("one task, 20 scores in 0..1, mean 98%", 9 / 9.2, f1(9, 0.2, 20, 1)),
    Case("12 tasks, 50 samples each, all 98% right", 0.98, successes([0.98] * 12, [50] * 12)),
    Case("12 tasks, 20 samples each, 2% to 98% right", 0.5, successes(list(SPREAD), [20] * 12)),
    Case("12 tasks, 5 samples each, all 90% right", 0.9, successes([0.9] * 12, [5] * 12)),
    Case("12 tasks, 2 samples each, all 90% right", 0.9, successes([0.9] * 12, [2] * 12)),
    Case("3 tasks, 5, 50 and 200 samples, all 95% right", 0.95, successes([0.95] * 3, [5, 50, 200])),
    Case("6 tasks, 20 scores in 0..1, mean 60%", 0.6, f1(0.3, 0.2, 20, 6)),
)


def bootstrap(groups: Groups, seed: int = 0, draws: int = 10_000) -> tuple[float, float]:
    """The percentile bootstrap: each task resampled within itself."""
    means = np.mean([resampled_means(group, seed + i, draws) for i, group in enumerate(groups)], axis=0)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def measure(case: Case, interval: Interval, repetitions: int, draws: int, seed: int = 0) -> tuple[float, float]:
    """(share of intervals that hold the truth, their mean width)."""
    rng = np.random.default_rng(seed)
    held, width = 0, 0.0
    for repetition in range(repetitions):
        low, high = interval(case.draw(rng), seed=repetition, draws=draws)
        held += low <= case.truth <= high
        width += high - low
    return held / repetitions, width / repetitions


def main() -> None:
    print("| scores | interval of tables: holds the truth | width | percentile bootstrap | width |")
    print("|---|---|---|---|---|")
    for case in CASES:
        found = (measure(case, interval, repetitions=2000, draws=1000) for interval in (mean_interval, bootstrap))
        print(f"| {case.name} | " + " | ".join(f"{held:.1%} | {100 * width:.1f}" for held, width in found) + " |")


if __name__ == "__main__":
    main()
