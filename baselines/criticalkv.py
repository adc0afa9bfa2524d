"""CriticalKV (Feng et al. 2025, arXiv 2502.03805) around any scorer: a token also matters by what its value adds.

    w_k[j] = mean over the G query heads h of group k of |W_O^h v_j|_1

Of n tokens, floor(share * n) are the best by the inner scorer's s, the others the best by (s + eps) * w. These sets are
nested, so one ranking serves every budget. What the inner scorer protects has s = max + 1, and counts in both stages.

Under AdaKV this is CriticalAdaKV: heads share the layer's budget by s alone, then each chooses in two stages. So the
ranking hands out the inner scorer's own scores, the highest to its first token (`lukv.ops.deal_scores`).

Differences from kvpress, whose code is the authors': in CriticalAdaKVPress a head's first stage has at least AdaKV's
floor, which changes heads with a budget of less than floor / share; here it is that share of the head's budget, as in
the paper. Computed in float32. Scores below zero (KeyDiff, key norm) make a *longer* value a worse one, as in their
code: the product is meant for attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lukv.ops import deal_scores, rank_in_two_stages
from lukv.scoring import PromptLayer, Wrapper

BLOCK = 512  # tokens at a time, so that W_O v is never there for a whole prompt


@dataclass(frozen=True)
class CriticalKV(Wrapper):
    """`share` in [0, 1]: the first stage's part of the budget. `eps` is added to the scores in the second."""

    needs_output: ClassVar[bool] = True
    name: str = "criticalkv"
    share: float = 0.5
    eps: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"{self.name}: share={self.share} must be between 0 and 1")
        super().__post_init__()

    def score(self, layer: PromptLayer) -> Tensor:
        scores = self.inner.score(layer)
        position = torch.arange(scores.shape[1], device=scores.device)
        protected = (position < self.inner.sink) | (position >= scores.shape[1] - self.inner.recent)
        scores = torch.where(protected, scores.max() + 1, scores)
        second = (scores + self.eps) * weigh_values(layer)
        return deal_scores(scores, rank_in_two_stages(scores, second, self.share))


def weigh_values(layer: PromptLayer) -> Tensor:
    """w [K, T] float32. Raises ValueError if the layer has no output projection."""
    if layer.output is None:
        raise ValueError(f"layer {layer.index} shows no output projection to weigh values by")
    heads, tokens = layer.values.shape[:2]
    first = 0 if layer.head is None else layer.head * layer.query_heads  # a view of one KV head has its group only
    projection = layer.output.unflatten(1, (-1, layer.values.shape[-1]))[:, first : first + layer.query_heads]
    weight = torch.zeros(heads, tokens, device=layer.values.device)
    for query_head, w in enumerate(projection.unbind(1)):  # [hidden, dv]
        head = query_head // (layer.query_heads // heads)
        for start in range(0, tokens, BLOCK):
            part = slice(start, start + BLOCK)
            weight[head, part] += (layer.values[head, part].float() @ w.float().T).abs().sum(-1)
    return weight / (layer.query_heads // heads)
