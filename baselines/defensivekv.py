"""DefensiveKV (Feng et al. 2025, arXiv 2510.13334): judge a token by the worst case, not by the mean.

With p = pool(softmax(q . K * scale)) of each of the last W queries and G query heads of group k, cut to the first
T - W tokens and scaled to the row's share of attention there:

    r_k[j] = max over queries and heads of p[j],  at least the mean over the tokens of that
    s_k[j] = r_k[j] * w_k[j] / sum over the KV heads of w[j]           w: |W_O v|_1, as in CriticalKV

Before all others, by their mean attention, rank the tokens that hold `mass` of the mean attention on the first T - W
tokens, less the share m that the W tokens before the window draw (CriticalKV's first stage). The last W tokens are
protected. Under allocator=adakv this is DefensiveKV, under allocator=global_topk LayerDefensiveKV.

This is the authors' repository, whose tables are these. Differences: they also end the first stage where the uniform
budget ends, which a ranking for every budget cannot know, and all of its tokens have the same score, so heads that
compete share them as top-k returns them; here they rank by their mean attention. AdaKV's floor is its own (0.2).
Computed in float32. It was not compared with their program, which needs their CUDA kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d

from baselines.criticalkv import weigh_values
from baselines.snapkv import SnapKV
from lukv.ops import attention_rows
from lukv.scoring import PromptLayer


@dataclass(frozen=True)
class DefensiveKV(SnapKV):
    """`mass`: the share of attention that the first stage holds."""

    needs_output: ClassVar[bool] = True
    name: str = "defensivekv"
    kernel: int = 5
    pool: str = "avg"
    mass: float = 0.9

    def score(self, layer: PromptLayer) -> Tensor:
        heads, tokens = layer.keys.shape[:2]
        queries = self.usable_queries(layer)
        before = tokens - queries.shape[1]
        scores = torch.zeros(heads, tokens, device=layer.keys.device)
        if not 0 < before < tokens:
            return scores
        risks, means, near = [], [], []
        for group, keys in zip(queries.unflatten(0, (heads, -1)), layer.keys, strict=True):
            rows = attention_rows(group, keys, layer.scale, before, layer.softcap).float()
            pooled = avg_pool1d(rows, self.kernel, stride=1, padding=self.kernel // 2)
            share = rows.sum(-1, keepdim=True) / pooled.sum(-1, keepdim=True).clamp(min=1e-30)
            worst = (pooled * share).amax((0, 1))
            risks.append(worst.clamp(min=worst.mean()))
            means.append(rows.mean((0, 1)))
            near.append(rows[..., -self.window :].sum(-1).mean())
        weight, mean = weigh_values(layer)[:, :before], torch.stack(means)
        risk = torch.stack(risks) * weight / weight.sum(0).clamp(min=1e-30)
        first = hold_mass(
            mean / mean.sum(-1, keepdim=True).clamp(min=1e-30), self.mass - float(torch.stack(near).mean())
        )
        scores[:, :before] = torch.where(first, risk.max() + mean, risk)
        return scores


def hold_mass(share: Tensor, wanted: float) -> Tensor:
    """[K, n] bool: of shares [K, n] that sum to 1, the largest ones before the one that completes `wanted`."""
    ranked = share.sort(dim=-1, descending=True, stable=True)
    count = (ranked.values.cumsum(-1) < wanted).sum(-1, keepdim=True)
    chosen = torch.arange(share.shape[-1], device=share.device) < count
    return torch.zeros_like(chosen).scatter_(-1, ranked.indices, chosen)
