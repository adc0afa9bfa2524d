"""H2O (Zhang et al. 2023, arXiv 2306.14048): heavy hitters, the tokens that collected the most attention so far.

    a_h[j] = sum over all queries t >= j of the prompt of softmax(q_t . K * scale)[j]
    s_k    = mean over the G query heads of group k of a_h

Rows are computed in blocks, so no T x T matrix exists. The prompt's queries are kept until its layer is ranked.

| config             | budget                                  | a_h[j]                          | who       |
|--------------------|-----------------------------------------|---------------------------------|-----------|
| h2o                | half the latest tokens, half by score   | the sum                         | the paper |
| observed_attention | all by score                            | the mean over the T - j queries | kvpress   |

The sum favours early tokens, which more queries see. The mean favours late ones, which few others compete with.

Differences from the paper's program: it evicts one token at every step, and what was evicted gets no more attention;
here, as in kvpress, the prompt attends in full and is ranked once. Heads that share keys are averaged (the paper's
models have none). Where heads compete, the halves are those of each head's own budget. After a later eviction only
queries whose own and later tokens are all still cached are counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lukv.ops import attention_mass, deal_scores, rank_in_two_stages
from lukv.scoring import PromptLayer, QueryKeeper

BLOCK = 512  # query rows at a time


@dataclass(frozen=True)
class H2O(QueryKeeper):
    """`latest` in [0, 1]: the part of the budget that the latest tokens get. `average`: the mean of a token's attention
    over the queries that see it, instead of the sum."""

    name: str = "h2o"
    latest: float = 0.5
    average: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.latest <= 1:
            raise ValueError(f"{self.name}: latest={self.latest} must be between 0 and 1")

    def score(self, layer: PromptLayer) -> Tensor:
        attention = self._collect(layer)
        if self.latest == 0:
            return attention
        position = layer.token_positions().float().expand_as(attention)
        return deal_scores(attention, rank_in_two_stages(position, attention, self.latest))

    def _collect(self, layer: PromptLayer) -> Tensor:
        """[K, T] float32: the attention that each token got."""
        heads, tokens = layer.keys.shape[:2]
        queries = self.read_queries(layer)
        rows = layer.intact_rows(queries.shape[1])
        total = torch.zeros(len(queries), tokens, device=layer.keys.device)
        for start in range(tokens - rows, tokens, BLOCK):
            end = min(start + BLOCK, tokens)
            block = queries[:, queries.shape[1] - tokens + start :][:, : end - start]
            mean = attention_mass(block, layer.keys[:, :end], layer.scale, start, layer.softcap)
            total[:, :end] += mean.float() * (end - start)
        if self.average:
            total /= torch.arange(tokens, 0, -1, device=total.device).clamp(max=max(rows, 1))
        return total.unflatten(0, (heads, -1)).mean(1)
