"""ChunkKV (Liu et al. 2025, arXiv 2502.00299) around any scorer: keep neighbouring tokens together.

The prompt is cut into chunks of `chunk` tokens. A chunk's score is the mean over its tokens of the inner scorer's
scores, summed over the KV heads. All of its tokens have this score, in every head of the layer.

| config          | what the inner scorer protects                                            | who                  |
|-----------------|---------------------------------------------------------------------------|----------------------|
| chunkkv         | stands outside: always kept, no part of a chunk's mean                    | the paper            |
| chunkkv_kvpress | has score max + 1, so that the chunks it stands in are kept first, whole  | kvpress's ChunkKVPress |

Differences: both codes keep whole chunks, so they miss the budget by up to a chunk; here budgets are exact and the last
chunk is cut, its later tokens first. The paper also lets neighbouring layers share one choice, which saves time; each
layer chooses for itself here, as in kvpress. After a later eviction chunks are cut from the tokens that are left, and
each KV head chooses for itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lukv.scoring import PromptLayer, Wrapper


@dataclass(frozen=True)
class ChunkKV(Wrapper):
    """`chunk`: tokens of a chunk. `lift`: what `inner` protects lifts its chunk, instead of standing outside."""

    name: str = "chunkkv"
    chunk: int = 10
    lift: bool = False

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"{self.name}: chunk={self.chunk} must be at least 1")
        own = self.sink, self.recent
        super().__post_init__()
        if self.lift:
            for part, value in zip(("sink", "recent"), own, strict=True):
                object.__setattr__(self, part, value)

    def score(self, layer: PromptLayer) -> Tensor:
        scores = self.inner.score(layer)
        heads, tokens = scores.shape
        position = torch.arange(tokens, device=scores.device)
        special = (position < self.inner.sink) | (position >= tokens - self.inner.recent)
        if self.lift:
            worth, counted = torch.where(special, scores.max() + 1, scores).sum(0), torch.ones_like(special)
        else:
            worth, counted = scores.sum(0) * ~special, ~special
        number = position // self.chunk
        total = scores.new_zeros(tokens // self.chunk + 1).index_add_(0, number, worth)
        size = scores.new_zeros(tokens // self.chunk + 1).index_add_(0, number, counted.to(scores.dtype))
        return (total / size.clamp(min=1))[number].expand(heads, -1).clone()
