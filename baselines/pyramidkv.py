"""PyramidKV (Cai et al. 2024, arXiv 2406.02069): lower layers keep more, in a straight line down to the top layer.

Two forms go by this name. Both say how many tokens every head of layer l of n keeps of a prompt of L tokens. They are
usually run on SnapKV scores; here they go with any scorer.

`PyramidKV`, the form of kvpress and of LU-KV's tables, with base = b*L:
    low = base / beta, high = 2 base - low;  if high >= L - W: high = L - W, low = 2 base - high
    layer l keeps high - l (high - low) / (n - 1);  unless L >= high >= low >= W: every layer keeps base
W = 64, whatever the scorer's own window. In long prompts low >= 64 needs base >= 1280. So this form *is* uniform for
L < 6400 at b = 0.2, for L < 12800 at b = 0.1, and in every prompt of up to 1024 tokens for all b < 0.5.

`PyramidKVOriginal`, the repository's form (KVCache-Factory), with a window W = 8 on top of the pyramid, C = round(b*L):
    base = C - W, low = base // beta, high = 2 base - low;  if high >= L - W: high = L - W, low = 2 base - high
    layer l keeps high - l ((high - low) // (n - 1)) + W;  when L < 2 base: every layer keeps C

Difference from both codes: they round layer by layer, and the integer step of the original overshoots the budget. Here
exactly round(b * layers * K * L) entries are shared out in these proportions, by largest remainder.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores, largest_remainder, round_half_up


@dataclass(frozen=True)
class PyramidKV(Allocator):
    """`window`: W in tokens. `beta` >= 1: the steepness; the top layer gets about 1/beta of the mean."""

    window: int = 64
    beta: int = 20

    def __post_init__(self) -> None:
        if self.window < 0 or self.beta < 1:
            raise ValueError(f"pyramidkv: window={self.window} must not be negative, beta={self.beta} at least 1")

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        wanted = self.pyramid(budget.of(layer.tokens), layer.tokens, layer.layers)
        weights = np.repeat(np.array([float(x) for x in wanted])[:, None], layer.heads, 1)
        total = budget.entries(layer.tokens, layer.layers * layer.heads)
        return torch.from_numpy(largest_remainder(weights, total, upper=layer.tokens)[layer.layer])

    def pyramid(self, share: Fraction, tokens: int, layers: int) -> list[Fraction]:
        """How many tokens every head of each layer should keep, before rounding."""
        base = share * tokens
        low = base / self.beta
        high = 2 * base - low
        if high >= tokens - self.window:
            high = Fraction(tokens - self.window)
            low = 2 * base - high
        if layers == 1 or not tokens >= high >= low >= self.window:
            return [base] * layers
        return [high - i * (high - low) / (layers - 1) for i in range(layers)]


@dataclass(frozen=True)
class PyramidKVOriginal(PyramidKV):
    """The form of the authors' repository. `window` is the observation window of its SnapKV scores."""

    window: int = 8

    def pyramid(self, share: Fraction, tokens: int, layers: int) -> list[Fraction]:
        capacity = round_half_up(share * tokens)
        base = capacity - self.window
        low = base // self.beta
        high = 2 * base - low
        if high >= tokens - self.window:
            high = tokens - self.window
            low = 2 * base - high
        if layers == 1 or base <= 0 or tokens < 2 * base:
            return [Fraction(capacity)] * layers
        step = (high - low) // (layers - 1)
        return [Fraction(high - i * step + self.window) for i in range(layers)]
