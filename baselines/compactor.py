"""Compactor (Chari and Van Durme 2025, arXiv 2507.08143), and its second half, non-causal attention, by itself.

    a_h[j] = sum over the queries of j's chunk of softmax(q . K_chunk)[j]        no scale, later keys seen too
    non-causal attention:  s = standardized mean over 3 tokens of |v| * (mean over the group of a_h)
    Compactor:             s = blending * (leverage scores, baselines/leverage.py) + non-causal attention

Chunks have 256 tokens. `standardized`: less the mean, over the deviation, of all heads of the layer. The last chunk is
filled up with zeros, which count as keys; a row of zeros spreads its attention evenly (kvpress's masks do no more).
This is kvpress's NonCausalAttnPress and CompactorPress, which ranks what stands between the first 8 and the last 4
tokens. These are protected.

Differences: kvpress blends by the share that it removes unless told otherwise, which a ranking for every budget cannot
know: `blending` is a number here, kvpress's for budget b is 1 - b. The authors' program has chunks of 128 that are not
filled up with keys, no |v|, no mean over 3 tokens, and a blending of 0.5.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from baselines.leverage import find_leverage, standardize
from lukv.scoring import PromptLayer, QueryKeeper


@dataclass(frozen=True)
class NonCausalAttention(QueryKeeper):
    """`chunk`: tokens that see each other."""

    name: str = "non_causal"
    chunk: int = 256

    def __post_init__(self) -> None:
        if self.chunk < 1:
            raise ValueError(f"{self.name}: chunk={self.chunk} must be at least 1")

    def score(self, layer: PromptLayer) -> Tensor:
        queries = self.read_queries(layer)[:, layer.token_positions()]
        groups = queries.float().unflatten(0, (len(layer.keys), -1))
        attention = torch.stack([self._collect(q, k.float()) for q, k in zip(groups, layer.keys, strict=True)])
        weighed = attention * layer.values.float().norm(dim=-1)
        return standardize(avg_pool1d(weighed, 3, stride=1, padding=1))

    def _collect(self, queries: Tensor, keys: Tensor) -> Tensor:
        """[T]: what each key of one KV head [T, d] gets from its group's queries [G, T, d], their mean."""
        tokens = len(keys)
        q, k = (pad(x, (0, 0, 0, -tokens % self.chunk)).unflatten(-2, (-1, self.chunk)) for x in (queries, keys))
        return (q @ k.mT).softmax(-1).sum(-2).flatten(1)[:, :tokens].mean(0)


@dataclass(frozen=True)
class Compactor(NonCausalAttention):
    """`blending`: the weight of the leverage scores. `sketch`, `seed`: see baselines/leverage.py."""

    needs_rope: ClassVar[bool] = True
    name: str = "compactor"
    sink: int = 8
    recent: int = 4
    blending: float = 0.35
    sketch: int = 48
    seed: int = 0

    def score(self, layer: PromptLayer) -> Tensor:
        heads, tokens = layer.keys.shape[:2]
        scores = torch.zeros(heads, tokens, device=layer.keys.device)
        inner = slice(self.sink, max(tokens - self.recent, 0))
        if self.sink < tokens - self.recent:
            part = replace(
                layer,
                keys=layer.keys[:, inner],
                values=layer.values[:, inner],
                positions=layer.token_positions()[inner],
                seen=layer.tokens,
            )
            leverage = standardize(find_leverage(part, self.sketch, self.seed))
            scores[:, inner] = self.blending * leverage + super().score(part)
        return scores
