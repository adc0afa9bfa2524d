"""SnapKV (Li et al. 2024, arXiv 2404.14469): what the prompt's last tokens attend to is what later tokens will need.

    a_h = mean over the last W queries of softmax(q . K * scale)      causal, over all T keys, cut to the first T - W
    s_k = mean over the G query heads of group k of pool(a_h)         odd kernel, stride 1, same length

The last W tokens are the observation window. They are protected and count inside the budget. The papers that report
"SnapKV" differ in these numbers and in the order of pooling and averaging. Each form has a config of its own:

| config         | window | kernel | pool | order           | who                                        |
|----------------|--------|--------|------|-----------------|--------------------------------------------|
| snapkv         | 32     | 7      | max  | pool_then_group | LU-KV's tables                             |
| snapkv_kvpress | 64     | 5      | avg  | pool_then_group | kvpress (zeros at the edges are counted)   |
| snapkv_adakv   | 32     | 7      | max  | group_then_pool | the AdaKV repository with gqa_support      |
| snapkv_pyramid | 8      | 7      | max  | pool_then_group | the PyramidKV repository (KVCache-Factory) |

The original repository repeats the KV heads before it compresses. Every *query* head then keeps tokens of its own, and
the cache holds G times as much. A cache that stores each KV head once cannot hold that. `python -m models.expand`
writes the checkpoint with repeated heads (G = 1), and `snapkv` on it is the original.

Differences from the authors' code: everything is float32, whatever the model's dtype. A prompt of at most W tokens is
all window and has score 0; the originals stop or keep everything. After a later eviction only window queries whose own
and later tokens are all still cached are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lukv.ops import attention_mass
from lukv.scoring import PromptLayer, Rope, Scorer

POOLS: dict[str, Callable[..., Tensor]] = {"max": F.max_pool1d, "avg": F.avg_pool1d}
ORDERS = ("pool_then_group", "group_then_pool")


@dataclass(frozen=True)
class SnapKV(Scorer):
    """`window` and `kernel` are in tokens; kernel is odd. `recent` is at least the window. `pool` is max or avg."""

    name: str = "snapkv"
    window: int = 32
    kernel: int = 7
    pool: str = "max"
    order: str = "pool_then_group"

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"{self.name}: window={self.window} must be at least 1")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ValueError(f"{self.name}: kernel={self.kernel} must be odd and at least 1")
        for name, allowed in (("pool", POOLS), ("order", ORDERS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{self.name}: {name}={getattr(self, name)}: choose {' or '.join(allowed)}")
        object.__setattr__(self, "recent", max(self.recent, self.window))

    def observe(self, observed: Tensor | None, queries: Tensor, start: int, rope: Rope | None) -> Tensor:
        """The last W queries so far, [H, min(W, seen), d]."""
        seen = queries if observed is None else torch.cat([observed, queries], 1)
        return seen[:, -self.window :].clone()  # a view would keep all queries of the prompt in memory

    def score(self, layer: PromptLayer) -> Tensor:
        heads, tokens = layer.keys.shape[:2]
        queries = self.usable_queries(layer)
        before = tokens - queries.shape[1]
        scores = torch.zeros(heads, tokens, device=layer.keys.device)
        if 0 < before < tokens:
            scores[:, :before] = self._pool(self._collect(queries, layer, before).float(), heads)
        return scores

    def _collect(self, queries: Tensor, layer: PromptLayer, before: int) -> Tensor:
        """[H, before]: a of the tokens before the window."""
        return attention_mass(queries, layer.keys, layer.scale, before, layer.softcap, "mean", columns=before)

    @staticmethod
    def usable_queries(layer: PromptLayer) -> Tensor:
        """The window's queries [H, n, d] whose own and later tokens are all still cached."""
        seen: int = layer.observed.shape[1]
        return layer.observed[:, seen - layer.intact_rows(seen) :]

    def _pool(self, attention: Tensor, heads: int) -> Tensor:
        """Pool attention [H, n] along the tokens and average it over each group, to [K, n]."""
        if self.order == "group_then_pool":
            attention = attention.unflatten(0, (heads, -1)).mean(1)
        pooled = POOLS[self.pool](attention, self.kernel, stride=1, padding=self.kernel // 2)
        return pooled if self.order == "group_then_pool" else pooled.unflatten(0, (heads, -1)).mean(1)
