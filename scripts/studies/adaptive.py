"""Prompt-adaptive budgets: an experiment, not a method of this repository. docs/beyond-embedded.md has its score on the
embedded model; text_budgets.py measures what it and others lose on a real one.

    python run.py -m method=lukv_plus budget=0.05,0.1,0.2 limit=200 \\
        allocator._target_=scripts.studies.adaptive.AdaptiveUtility 'targets=[lukv,baselines,evals,scripts]'
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lukv.allocation import Budget, HeadScores, count_winners
from lukv.budgets.curve import CurveAllocator


@dataclass
class AdaptiveUtility(CurveAllocator):
    """LU-curve's total for each layer, shared out to its heads by this prompt's scores. The scorer's scores must be
    comparable between the heads of a layer, as predicted utilities are."""

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        return torch.from_numpy(count_winners(layer.scores, int(super().counts(budget, layer).sum())))
