"""Scores, keep counts and protection -> kept positions. The tie rule lives here and nowhere else:
equal scores keep the later position first, and protected tokens outrank all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores
from lukv.scoring import PromptLayer, Scorer

STARVED = ("sinks_first", "earliest", "authors")


@dataclass(frozen=True)
class Protection:
    """First `sink` and last `recent` tokens to rank first, at least: a scorer may ask for more.

    starved: what a head with fewer slots than protected tokens keeps of them. sinks_first: the sinks, the first one
    first, then the latest tokens. earliest: the earliest (kvpress and the later release of LU-KV's authors). authors:
    the latest, so that sinks go first (their older release, which prunes upwards among tied scores)."""

    sink: int = 0
    recent: int = 0
    starved: str = "sinks_first"

    def __post_init__(self) -> None:
        if self.starved not in STARVED:
            raise ValueError(f"protection: starved={self.starved} is not known: choose one of {', '.join(STARVED)}")
        if self.sink < 0 or self.recent < 0:
            raise ValueError(f"protection: sink={self.sink} and recent={self.recent} must be at least 0")

    def over(self, scorer: Scorer) -> Protection:
        """What is protected when this protection is asked for and the scorer brings its own."""
        return Protection(max(self.sink, scorer.sink), max(self.recent, scorer.recent), self.starved)

    def mask(self, tokens: int, device: torch.device | str = "cpu") -> Tensor:
        """[tokens] bool: which tokens are protected."""
        return self.level(tokens, device) > 0

    def level(self, tokens: int, device: torch.device | str = "cpu") -> Tensor:
        """[tokens] int64: 0 for an ordinary token, 1 and more for a protected one, the one to keep longest highest (by
        `starved`); of equal ones the tie rule keeps the later."""
        position = torch.arange(tokens, device=device)
        recent = (position >= tokens - self.recent).long()
        if self.starved != "sinks_first":
            protected = recent.bool() | (position < self.sink)
            later = protected.flip(0).cumsum(0).flip(0)  # protected tokens from here on
            return protected * later if self.starved == "earliest" else protected.long()
        return torch.where(position < self.sink, 1 + self.sink - position, recent)


Ranking = tuple[Scorer, Protection]
"""What decides the order of a prompt's tokens, whatever the budget."""


@dataclass(frozen=True)
class Ranked:
    """One layer of one prompt: `heads` is what allocators see, order [K, T] int64 its positions, best first."""

    heads: HeadScores
    order: Tensor


@dataclass(frozen=True)
class Eviction:
    """A method at a budget: scorer x allocator x protection."""

    scorer: Scorer
    allocator: Allocator
    protection: Protection
    budget: Budget

    def keep(self, layer: PromptLayer) -> Tensor:
        """[K, T] bool: the entries of this layer that stay. Raises ValueError for unusable scores or counts."""
        return self.best(self.rank(layer))

    @property
    def ranking(self) -> Ranking:
        return self.scorer, self.protection.over(self.scorer)

    def rank(self, layer: PromptLayer) -> Ranked:
        """The same for every budget and allocator: depends on `ranking` alone."""
        scores = self.scorer.score(layer)
        heads, tokens = layer.keys.shape[:2]
        if scores.shape != (heads, tokens):
            raise ValueError(f"scorer {self.scorer.name}: scores {list(scores.shape)} instead of {[heads, tokens]}")
        _, protection = self.ranking
        scores = protect(scores, protection, self.scorer.name)
        return Ranked(scores_of(layer, scores, protection), rank(scores))

    def best(self, ranked: Ranked) -> Tensor:
        """[K, T] bool: as many of the best entries of each head as the allocator says."""
        heads, tokens = ranked.order.shape
        counts = self.allocator.counts(self.budget, ranked.heads)
        if counts.shape != (heads,) or counts.min() < 0 or counts.max() > tokens:
            name = type(self.allocator).__name__
            raise ValueError(f"{name}: counts {counts.tolist()} are not {heads} numbers from 0 to {tokens}")
        return first(ranked.order, counts)


def scores_of(layer: PromptLayer, scores: Tensor, protection: Protection) -> HeadScores:
    """What an allocator sees of a layer whose protected tokens `protect` has raised in scores [K, T]."""
    return HeadScores(scores, protection.mask(scores.shape[-1], scores.device), layer.index, layer.layers)


def protect(scores: Tensor, protection: Protection, name: str = "scorer") -> Tensor:
    """scores [K, T] with the protected tokens raised above every score of the layer (so that they also win where heads
    compete), in the order of `Protection.level`. Raises ValueError for scores that are NaN or infinite.

    The step is 1 or, for large scores, a millionth of the largest: 1e9 + 1 is 1e9 in float32.
    """
    top = scores.max()
    level = protection.level(scores.shape[-1], scores.device)
    raised = torch.where(level > 0, top + level * (top.abs() * 2**-20).clamp(min=1), scores)
    if not (torch.isfinite(scores) & torch.isfinite(raised)).all():
        raise ValueError(f"scorer {name}: a score is NaN or infinite (or too near the largest float to rank above it)")
    return raised


def rank(scores: Tensor) -> Tensor:
    """[K, T] positions of each head, best first; equal scores: the later position first."""
    flipped = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return scores.shape[-1] - 1 - flipped


def best(scores: Tensor, counts: Tensor) -> Tensor:
    """[K, T] bool: the counts[k] best entries of each head k."""
    return first(rank(scores), counts)


def first(order: Tensor, counts: Tensor) -> Tensor:
    """[K, T] bool: the first counts[k] of the positions order [K, T]."""
    chosen = torch.arange(order.shape[-1], device=order.device) < counts.to(order.device)[:, None]
    return torch.zeros_like(chosen).scatter_(-1, order, chosen)
