"""LagKV (Liang et al. 2025, arXiv 2504.04704): a partition of the prompt is judged against the one that follows.

Behind the sinks the prompt is cut into partitions of `lag` tokens. Per head and dimension, with the smallest and
largest value of the *next* partition:

    x' = (x - min) / (max - min)        of keys and values
    c  = softmax over the partition of the standard deviation of x' over the dimensions
    s  = (c of keys + c of values) / 2

Every partition keeps the same share: what counts is a token's rank in its own partition. `cross` lets the partitions
compete by s instead (kvpress's cross_scoring). The last partition, and the rest behind it, have no next one: they score
1, above all others. So does the whole of a prompt shorter than two partitions, latest tokens first.

Differences from the paper: it evicts while the text streams in, always against uncompressed partitions, and keeps a
short prompt whole; here, as in kvpress's LagKVPress, the prompt is ranked once. A dimension in which the next partition
does not vary counts as 0; theirs divides by zero. Computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True)
class LagKV(Scorer):
    """`lag`: tokens of a partition. `cross`: partitions compete. The first `sink` tokens are protected."""

    name: str = "lagkv"
    sink: int = 4
    lag: int = 128
    cross: bool = False

    def __post_init__(self) -> None:
        if self.lag < 1:
            raise ValueError(f"{self.name}: lag={self.lag} must be at least 1")

    def score(self, layer: PromptLayer) -> Tensor:
        heads, tokens = layer.keys.shape[:2]
        scores = torch.ones(heads, tokens, device=layer.keys.device)
        partitions = (tokens - self.sink) // self.lag
        if partitions < 2:
            behind = max(tokens - self.sink, 0)
            scores[:, self.sink :] = torch.arange(behind, device=scores.device) / max(behind, 1)
            return scores
        cut = slice(self.sink, self.sink + partitions * self.lag)
        both = [self._spread(x[:, cut].float().unflatten(1, (partitions, -1))) for x in (layer.keys, layer.values)]
        judged = (both[0] + both[1]) / 2
        if not self.cross:
            judged = judged.argsort(dim=-1, stable=True).argsort(dim=-1) / self.lag
        scores[:, self.sink : self.sink + judged[0].numel()] = judged.flatten(1)
        return scores

    @staticmethod
    def _spread(x: Tensor) -> Tensor:
        """c [K, partitions - 1, lag] of keys or values x [K, partitions, lag, d]."""
        low, high = x[:, 1:].amin(2, keepdim=True), x[:, 1:].amax(2, keepdim=True)
        width = high - low
        scaled = torch.where(width > 0, (x[:, :-1] - low) / width.where(width > 0, 1), 0)
        return scaled.std(-1, correction=min(1, x.shape[-1] - 1)).softmax(-1)
