"""Scores, keep counts and protection -> kept positions.

The tie rule lives here and nowhere else: of equal scores the later position is kept first, and protected tokens outrank
all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores, Uniform
from lukv.names import check_cache_dtype
from lukv.scoring import PromptLayer, Scorer

STARVED = ("sinks_first", "earliest", "authors")


@dataclass(frozen=True)
class Protection:
    """The first `sink` and last `recent` tokens rank before all others. A scorer may ask for more of them.

    starved: which protected tokens a head keeps that has fewer slots than there are of them. `sinks_first`: the sinks
    from the first one on, then the latest tokens. `earliest`: the earliest (kvpress and the later release of LU-KV's
    authors). `authors`: the latest, so that sinks go first (their older release, which prunes upwards among tied
    scores).
    """

    sink: int = 0
    recent: int = 0
    starved: str = "sinks_first"

    def __post_init__(self) -> None:
        if self.starved not in STARVED:
            raise ValueError(f"protection: starved={self.starved} is not known: choose one of {', '.join(STARVED)}")
        if self.sink < 0 or self.recent < 0:
            raise ValueError(f"protection: sink={self.sink} and recent={self.recent} must be at least 0")

    def over(self, scorer: Scorer) -> Protection:
        """What is protected when the scorer brings a protection of its own: the larger of both."""
        return Protection(max(self.sink, scorer.sink), max(self.recent, scorer.recent), self.starved)

    def mask(self, tokens: int, device: torch.device | str = "cpu") -> Tensor:
        """[tokens] bool: which tokens are protected."""
        return self.grade(tokens, device) > 0

    def grade(self, tokens: int, device: torch.device | str = "cpu") -> Tensor:
        """[tokens] int64: 0 for an ordinary token, 1 and more for a protected one, the highest for the one that is kept
        longest (see `starved`). Of equal grades the tie rule keeps the later token."""
        position = torch.arange(tokens, device=device)
        recent = (position >= tokens - self.recent).long()
        if self.starved != "sinks_first":
            protected = recent.bool() | (position < self.sink)
            later = protected.flip(0).cumsum(0).flip(0)  # protected tokens from here on
            return protected * later if self.starved == "earliest" else protected.long()
        return torch.where(position < self.sink, 1 + self.sink - position, recent)


Ranking = tuple[Scorer, Protection]
"""What decides the order of a prompt's tokens. The budget does not."""


@dataclass(frozen=True)
class Ranked:
    """One ranked layer of one prompt: `heads` is what allocators see; order [K, T] int64 are its positions, best
    first."""

    heads: HeadScores
    order: Tensor


@dataclass(frozen=True)
class Eviction:
    """A method at a budget: scorer x allocator x protection.

    cache_dtype: what the entries that stay are stored in. auto: the model's dtype; int8 and int4: so many bits a number
    (lukv.backend.quantized). Raises ValueError for another one.
    """

    scorer: Scorer
    allocator: Allocator
    protection: Protection
    budget: Budget
    cache_dtype: str = "auto"

    def __post_init__(self) -> None:
        check_cache_dtype(self.cache_dtype)

    @property
    def waits(self) -> bool:
        """Must the whole prompt be in the cache, in all layers, before anything can be evicted?"""
        return self.scorer.makes_passes or self.allocator.compares_layers

    def keep(self, layer: PromptLayer) -> Tensor:
        """[K, T] bool: the entries of this layer that stay. Raises ValueError for unusable scores or counts, and for an
        allocator that compares layers (see `select`)."""
        if self.allocator.compares_layers:
            raise ValueError(f"{type(self.allocator).__name__} compares layers: it cannot evict one by itself")
        return self.select([self.rank(layer)])[0]

    @property
    def ranking(self) -> Ranking:
        return self.scorer, self.protection.over(self.scorer)

    def rank(self, layer: PromptLayer) -> Ranked:
        """Score and order one layer's tokens. This depends on `ranking` alone: budgets and allocators can share it.
        Raises ValueError for unusable scores."""
        scores = self.scorer.score(layer)
        heads, tokens = layer.keys.shape[:2]
        if scores.shape != (heads, tokens):
            raise ValueError(f"scorer {self.scorer.name}: scores {list(scores.shape)} instead of {[heads, tokens]}")
        _, protection = self.ranking
        scores = protect(scores, protection, self.scorer.name)
        return Ranked(make_head_scores(layer, scores, protection), rank(scores))

    def select(self, ranked: Sequence[Ranked]) -> list[Tensor]:
        """Of each layer of one prompt [K, T] bool: as many of each head's best entries as the allocator says. Raises
        ValueError for unusable counts."""
        counts = self.allocator.counts_of_layers(self.budget, [layer.heads for layer in ranked])
        return [self._select(*layer) for layer in zip(ranked, counts, strict=True)]

    def _select(self, ranked: Ranked, counts: Tensor) -> Tensor:
        heads, tokens = ranked.order.shape
        if counts.shape != (heads,) or counts.min() < 0 or counts.max() > tokens:
            name = type(self.allocator).__name__
            raise ValueError(f"{name}: counts {counts.tolist()} are not {heads} numbers from 0 to {tokens}")
        return select_first(ranked.order, counts)


@dataclass(frozen=True)
class NoPreference(Scorer):
    """Every token is worth the same."""

    name: str = "none"

    def score(self, layer: PromptLayer) -> Tensor:
        return torch.zeros(layer.keys.shape[:2], device=layer.keys.device)


def keep_everything(cache_dtype: str) -> Eviction | None:
    """What stores the whole prompt as this cache_dtype says. None: as it is."""
    if cache_dtype == "auto":
        return None
    return Eviction(NoPreference(), Uniform(), Protection(), Budget(1.0), cache_dtype)


def make_head_scores(layer: PromptLayer, scores: Tensor, protection: Protection) -> HeadScores:
    """What an allocator sees of a layer. scores [K, T]: those that `protect` returns."""
    return HeadScores(scores, protection.mask(scores.shape[-1], scores.device), layer.index, layer.layers)


def protect(scores: Tensor, protection: Protection, name: str = "scorer") -> Tensor:
    """Raise the protected tokens in scores [K, T] above every score of the layer, in the order of `Protection.grade`.

    So they also win where heads compete. Raises ValueError for scores that are NaN or infinite. From grade to grade the
    score rises by 1 or, if scores are large, by a millionth of the largest, because 1e9 + 1 is 1e9 in float32.
    """
    top = scores.max()
    grade = protection.grade(scores.shape[-1], scores.device)
    raised = torch.where(grade > 0, top + grade * (top.abs() * 2**-20).clamp(min=1), scores)
    if not (torch.isfinite(scores) & torch.isfinite(raised)).all():
        raise ValueError(f"scorer {name}: a score is NaN or infinite (or too near the largest float to rank above it)")
    return raised


def rank(scores: Tensor) -> Tensor:
    """[K, T] positions of each head, best first; equal scores: the later position first."""
    flipped = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return scores.shape[-1] - 1 - flipped


def select_best(scores: Tensor, counts: Tensor) -> Tensor:
    """[K, T] bool: the counts[k] best entries of each head k."""
    return select_first(rank(scores), counts)


def select_first(order: Tensor, counts: Tensor) -> Tensor:
    """[K, T] bool: the first counts[k] of the positions order [K, T]."""
    chosen = torch.arange(order.shape[-1], device=order.device) < counts.to(order.device)[:, None]
    return torch.zeros_like(chosen).scatter_(-1, order, chosen)
