"""CAKE's scores (Qin et al. 2025, arXiv 2503.12491): a token matters by the window's attention and by how it wavers.

    a_h = mean + gamma * variance, over the last W queries, of softmax(q . K * scale)      cut to the first T - W
    s_k = mean over the G query heads of group k of pool(a_h)                              as SnapKV

The variance is the unbiased one, gamma = 200. The last W tokens are protected, as in SnapKV.

CAKE's other half is left out: it shares the budget among the layers by H^(1/t1) V^(1/t2), the entropy and the variance
of the same attention, which an allocator does not see. t1 and t2 are tuned for each model. Computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from baselines.snapkv import SnapKV
from lukv.ops import attention_rows
from lukv.scoring import PromptLayer


@dataclass(frozen=True)
class CAKE(SnapKV):
    """`gamma`: the weight of the variance."""

    name: str = "cake"
    kernel: int = 5
    pool: str = "avg"
    gamma: float = 200.0

    def _collect(self, queries: Tensor, layer: PromptLayer, before: int) -> Tensor:
        found = []
        for group, keys in zip(queries.unflatten(0, (len(layer.keys), -1)), layer.keys, strict=True):
            rows = attention_rows(group, keys, layer.scale, before, layer.softcap)
            found.append(rows.mean(1) + self.gamma * rows.var(1, correction=min(1, rows.shape[1] - 1)))
        return torch.cat(found)
