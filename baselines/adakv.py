"""AdaKV (Feng et al. 2024, arXiv 2407.11550): inside a layer the heads compete for the layer's budget by their scores.

Two forms go by this name:

`AdaKV`, the form of kvpress and of LU-KV's tables, with n = floor(b*L): every head first keeps its own best
floor(alpha*n) entries, a hard floor; what is left of the layer's budget goes to the layer's highest remaining scores.

`AdaKVOriginal`, the repository's form, with protected tokens outside the competition: base is what a head has left
beside them; a_h of the layer's top K*base scores fall in head h, which keeps (1 - alpha) a_h + alpha*base of them.
When the budget is not larger than what is protected there is nothing to compete for: every head keeps the same.

Differences from both codes: a layer keeps exactly round(b*K*L) entries (theirs truncate and round head by head); at
equal scores the heads share in proportion to their ties (theirs: whatever top-k returns). The original's option to
weigh scores by the share of the attention that a head's top entries hold is left out (its default is off).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores, Uniform, largest_remainder


@dataclass(frozen=True)
class AdaKV(Allocator):
    """`alpha` in [0, 1]: the part of the uniform budget that every head has for itself; 1 is uniform."""

    alpha: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"adakv: alpha={self.alpha} must be between 0 and 1")

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        total = budget.entries(layer.tokens, layer.heads)
        uniform = budget.of(layer.tokens) * layer.tokens // 1
        floor = int(Fraction(str(self.alpha)) * uniform)
        remaining = layer.scores.sort(-1, descending=True).values[:, floor:]
        return floor + torch.from_numpy(count_winners(remaining, total - floor * layer.heads))


@dataclass(frozen=True)
class AdaKVOriginal(AdaKV):
    """The repository's form."""

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        protected = int(layer.protected.sum())
        rest = budget.entries(layer.tokens, layer.heads) - protected * layer.heads
        if rest <= 0:
            return Uniform().counts(budget, layer)
        won = count_winners(layer.scores[:, ~layer.protected], rest)
        wanted = (1 - self.alpha) * won + self.alpha * rest / layer.heads
        return protected + torch.from_numpy(largest_remainder(wanted, rest, upper=layer.tokens - protected))


def count_winners(scores: Tensor, total: int) -> np.ndarray:
    """[K] int64: how many of the `total` highest of scores [K, n] are in each head. Of equal scores at the border each
    head gets in proportion to how many it has."""
    if total == 0:
        return np.zeros(len(scores), dtype=np.int64)
    border = scores.flatten().topk(total).values[-1]
    above = (scores > border).sum(-1).cpu().numpy()
    ties = (scores == border).sum(-1).cpu().numpy()
    return above + largest_remainder(ties, total - int(above.sum()), upper=int(ties.max()))
