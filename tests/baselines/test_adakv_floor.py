"""The entries that AdaKV leaves every head: floor(alpha * floor(budget * tokens))."""

from __future__ import annotations

import pytest
import torch

from baselines.adakv import AdaKV
from lukv.allocation import Budget, HeadScores


@pytest.mark.parametrize(
    ("share", "alpha", "floor", "total"),
    [
        (0.55, 0.55, 2, 11),  # 0.55 * 5 = 2.75
        (0.59, 0.9, 4, 12),  # 5.9 tokens are 5; 0.9 * 5 = 4.5
        (0.5, 0.2, 1, 10),
        (0.5, 0.19, 0, 10),
        (0.3, 1 / 3, 0, 6),  # 0.999... of a token
        (0.2, 0.5, 1, 4),
    ],
)
def test_a_head_without_high_scores_keeps_the_floor_rounded_down(
    share: float, alpha: float, floor: int, total: int
) -> None:
    scores = torch.stack([1 + torch.rand(10), torch.rand(10) / 2])
    layer = HeadScores(scores, torch.zeros(10, dtype=torch.bool), 0, 1)
    counts = AdaKV(alpha=alpha).counts(Budget(share=share), layer).tolist()
    assert counts == [min(10, total - floor), max(floor, total - 10)]
