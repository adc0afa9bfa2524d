"""The difference of two runs is the mean of the tasks' differences, whatever their numbers of samples."""

from __future__ import annotations

import numpy as np
import pytest

from evals.differences import compare


def test_tasks_count_equally_in_the_mean_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    other = {"many": dict(enumerate(rng.random(300))), "few": dict(enumerate(rng.random(20)))}
    change = {"many": 0.1, "few": 0.3}
    mine = {
        task: {i: score + change[task] + 0.01 * rng.standard_normal() for i, score in scores.items()}
        for task, scores in other.items()
    }
    found = compare(mine, other, "x")
    assert found["mean"].mean == pytest.approx(0.2, abs=0.005)  # of all samples it is 0.11
    assert found["mean"].low < found["mean"].mean < found["mean"].high
    assert found["mean"].high - found["mean"].low < 0.01
