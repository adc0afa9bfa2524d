"""AdaKV (Feng et al. 2024, arXiv 2407.11550): the heads of a layer compete for the layer's budget by their scores.

Two forms go by this name:

`AdaKV` is the form of kvpress and of LU-KV's tables. With n = floor(b*L), every head first keeps its own best
floor(alpha*n) entries. The rest of the layer's budget goes to the layer's highest remaining scores.

`AdaKVOriginal` is the form of the authors' repository. Protected tokens stand outside the competition, and base is what
a head may keep beside them. If a_h of the layer's top K*base scores are in head h, this head keeps
(1 - alpha)*a_h + alpha*base of them. If the budget does not exceed the protected tokens, every head keeps the same.

Differences from both codes: a layer keeps exactly round(b*K*L) entries, while theirs truncate and round head by head.
At equal scores the heads share in proportion to their ties, while theirs take what top-k returns. The original can also
weigh scores by the share of attention that a head's top entries hold; this option, off by default there, is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores, Uniform, count_winners, largest_remainder


@dataclass(frozen=True)
class AdaKV(Allocator):
    """`alpha` in [0, 1]: the part of the uniform budget that every head keeps in any case. 1 is uniform."""

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
    """The form of the authors' repository."""

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        protected = int(layer.protected.sum())
        rest = budget.entries(layer.tokens, layer.heads) - protected * layer.heads
        if rest <= 0:
            return Uniform().counts(budget, layer)
        won = count_winners(layer.scores[:, ~layer.protected], rest)
        wanted = (1 - self.alpha) * won + self.alpha * rest / layer.heads
        return protected + torch.from_numpy(largest_remainder(wanted, rest, upper=layer.tokens - protected))
