"""What an allocator is: it says how many tokens each KV head of a layer may keep. And the one rounding rule.

Budgets are exact. They are computed in fractions from the decimal that the user wrote, never from binary floats:
0.2 of 4000 is 800, while `int(4000 * (1 - 0.8))` is 799.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class EntrySizes:
    """Bytes of an entry of a cache: `full` in the model's dtype, `packed` as the cache stores it. The last `recent`
    entries of every head are in the model's dtype in any case."""

    full: int
    packed: int
    recent: int

    @property
    def largest_share(self) -> Fraction:
        """What a long cache takes that keeps everything, of the full cache's bytes."""
        return Fraction(self.packed, self.full)

    def find_share(self, share: Fraction, tokens: int) -> Fraction:
        """The share of a prompt's entries that take this share of the full cache's bytes, if every head keeps as many,
        and fewer if they do not."""
        bytes_of_recent = self.recent * self.full
        rest = share * tokens * self.full - bytes_of_recent
        return share if rest <= 0 else (self.recent + rest / self.packed) / tokens


@dataclass(frozen=True)
class Budget:
    """What may be kept: a share of the prompt (0 < share <= 1) or a number of tokens per head. Exactly one is given.

    sizes: if given, the share is one of bytes: of what the full cache takes in the model's dtype.
    """

    share: float | None = None
    tokens: int | None = None
    sizes: EntrySizes | None = None

    def __post_init__(self) -> None:
        if (self.share is None) == (self.tokens is None):
            raise ValueError(
                "a budget is either a share or a number of tokens: give exactly one of budget, budget_tokens"
            )
        if self.share is not None and not 0 < self.share <= 1:
            name = "budget" if self.sizes is None else "budget_bytes"
            raise ValueError(
                f"{name}={self.share} is not a share: it must be > 0 and <= 1 (the part of the cache to KEEP)"
            )
        if self.tokens is not None and self.tokens < 1:
            raise ValueError(f"budget_tokens={self.tokens} must be at least 1")
        if self.sizes is not None and (most := self.sizes.largest_share) < Fraction(str(self.share)):
            raise ValueError(
                f"budget_bytes={self.share} cannot be met: with this cache_dtype a cache that keeps everything takes "
                f"{float(most):.4f} of the bytes. Give at most {int(most * 10_000) / 10_000:g}, or budget=1"
            )

    def of(self, tokens: int) -> Fraction:
        """The kept share of the entries of a prompt of `tokens` tokens, exactly."""
        if self.tokens is not None:
            return Fraction(min(self.tokens, tokens), tokens)
        share = Fraction(str(self.share))
        return share if self.sizes is None else self.sizes.find_share(share, tokens)

    def entries(self, tokens: int, heads: int) -> int:
        """How many entries `heads` heads keep together: round-half-up(share * tokens * heads). Bytes are rounded down:
        a cache takes no more of them than it was given."""
        exact = self.of(tokens) * tokens * heads
        return round_half_up(exact) if self.sizes is None else int(exact)


@dataclass(frozen=True)
class HeadScores:
    """What an allocator may look at: one layer of one prompt.

    scores [K, T] float32: protected tokens are already raised above all others of the layer. `protected` [T] bool says
    which tokens these are. `layer` is the layer's number among the `layers` that can be evicted.
    """

    scores: Tensor
    protected: Tensor
    layer: int
    layers: int

    @property
    def heads(self) -> int:
        return self.scores.shape[0]

    @property
    def tokens(self) -> int:
        return self.scores.shape[1]


class Allocator:
    """Base of all allocators. One in which the heads of all layers compete defines `counts_of_layers` instead of
    `counts`."""

    exact: ClassVar[bool] = True
    """False for one that keeps what it sees fit, more or less than the budget, prompt by prompt. Then nobody holds its
    counts to the totals below, and what is kept is what is reported."""

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        """[K] int64 on the CPU: how many entries each KV head keeps, between 0 and T.

        A layer's counts sum to `budget.entries(T, K)`. Only an allocator that moves budget between layers may differ;
        then the counts of all layers sum to `budget.entries(T, layers * K)`.
        """
        raise NotImplementedError

    def counts_of_layers(self, budget: Budget, layers: Sequence[HeadScores]) -> list[Tensor]:
        """The counts of all layers of one prompt at once. By default each layer's own, `counts`.

        Where this is defined anew, the cache stays whole until every layer is scored.
        """
        return [self.counts(budget, layer) for layer in layers]

    @property
    def compares_layers(self) -> bool:
        """Must it see the scores of all layers before it can say a count?"""
        return type(self).counts_of_layers is not Allocator.counts_of_layers


@dataclass(frozen=True)
class Uniform(Allocator):
    """Every head keeps the same share. What does not divide evenly goes to the first heads, one entry each."""

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        total = budget.entries(layer.tokens, layer.heads)
        return torch.from_numpy(largest_remainder(np.ones(layer.heads), total, upper=layer.tokens))


def round_half_up(x: Fraction) -> int:
    return int((2 * x + 1) // 2)


def largest_remainder(weights: np.ndarray, total: int, upper: int, lower: int = 0) -> np.ndarray:
    """Integers in proportion to `weights` (any shape, >= 0) that sum to exactly `total`, each in [lower, upper].

    A share that exceeds a bound is fixed at the bound, and the rest is shared out again. Then all shares are rounded
    down, and the largest fractions get one more entry each (ties: the lower index). Raises ValueError when no such
    integers exist.
    """
    n = weights.size
    if not (np.isfinite(weights).all() and (weights >= 0).all()):
        raise ValueError("head weights must be finite and not negative")
    if not lower * n <= total <= upper * n:
        raise ValueError(f"{n} heads of {lower} to {upper} entries cannot hold exactly {total}")
    w = np.asarray(weights, dtype=np.float64).ravel()
    w = w / w.max() if w.max(initial=0) > 0 else w
    ideal = np.full(n, float(lower))
    free = np.ones(n, dtype=bool)
    while free.any():
        rest = total - ideal[~free].sum()
        mass = w[free].sum()
        want = w[free] / mass * rest if mass > 0 else np.full(int(free.sum()), rest / free.sum())
        over, under = want > upper, want < lower
        if not (over.any() or under.any()):
            ideal[free] = want
            break
        # fix only the side with the larger excess: the other side may come back within its bounds
        high = (want - upper)[over].sum() >= (lower - want)[under].sum()
        index = np.flatnonzero(free)[over if high else under]
        ideal[index] = upper if high else lower
        free[index] = False
    counts = np.floor(ideal + 1e-9).astype(np.int64)
    order = np.argsort(-(ideal - counts), kind="stable")
    order = order[counts[order] < upper]
    counts[order[: total - int(counts.sum())]] += 1
    return counts.reshape(np.shape(weights))


def count_winners(scores: Tensor, total: int) -> np.ndarray:
    """[K] int64: how many of the `total` highest of scores [K, n] are in each head.

    Heads with equal scores at the border share in proportion to how many they have.
    """
    if total == 0:
        return np.zeros(len(scores), dtype=np.int64)
    border = scores.flatten().topk(total).values[-1]
    above = (scores > border).sum(-1).cpu().numpy()
    ties = (scores == border).sum(-1).cpu().numpy()
    return above + largest_remainder(ties, total - int(above.sum()), upper=int(ties.max()))
