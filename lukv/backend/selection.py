"""Scores, keep counts and protection -> kept positions. The tie rule lives here and nowhere else:
equal scores keep the later position first, and protected tokens outrank all others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores
from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True)
class Protection:
    """First `sink` and last `recent` tokens to rank first, at least: a scorer may ask for more."""

    sink: int = 0
    recent: int = 0

    def over(self, scorer: Scorer) -> Protection:
        return Protection(max(self.sink, scorer.sink), max(self.recent, scorer.recent))

    def mask(self, tokens: int, device: torch.device | str = "cpu") -> Tensor:
        """[tokens] bool: which tokens are protected."""
        position = torch.arange(tokens, device=device)
        return (position < self.sink) | (position >= tokens - self.recent)


@dataclass(frozen=True)
class Eviction:
    """A method at a budget: scorer x allocator x protection."""

    scorer: Scorer
    allocator: Allocator
    protection: Protection
    budget: Budget

    def keep(self, layer: PromptLayer) -> Tensor:
        """[K, T] bool: the entries of this layer that stay. Raises ValueError for scores that are not finite."""
        scores = protect(self.scorer.score(layer), self.protection.over(self.scorer), self.scorer.name)
        counts = self.allocator.counts(self.budget, scores_of(layer, scores, self.protection.over(self.scorer)))
        return best(scores, counts)


def scores_of(layer: PromptLayer, scores: Tensor, protection: Protection) -> HeadScores:
    return HeadScores(scores, protection.mask(scores.shape[-1], scores.device), layer.index, layer.layers)


def protect(scores: Tensor, protection: Protection, name: str = "scorer") -> Tensor:
    """Raise the protected tokens of scores [K, T] to each head's max + 1; a sink outranks a recent token (+ 2), so a head with
    fewer slots than protected tokens keeps its sinks first."""
    if not torch.isfinite(scores).all():
        raise ValueError(f"{name}: a score is NaN or infinite")
    top = scores.amax(-1, keepdim=True)
    recent = protection.mask(scores.shape[-1], scores.device)
    sink = torch.arange(scores.shape[-1], device=scores.device) < protection.sink
    return torch.where(sink, top + 2, torch.where(recent, top + 1, scores))


def rank(scores: Tensor) -> Tensor:
    """[K, T] positions of each head, best first; equal scores: the later position first."""
    flipped = scores.flip(-1).argsort(dim=-1, descending=True, stable=True)
    return scores.shape[-1] - 1 - flipped


def best(scores: Tensor, counts: Tensor) -> Tensor:
    """[K, T] bool: the counts[k] best entries of each head k."""
    order = rank(scores)
    chosen = torch.arange(scores.shape[-1], device=scores.device) < counts.to(scores.device)[:, None]
    return torch.zeros_like(chosen).scatter_(-1, order, chosen)
