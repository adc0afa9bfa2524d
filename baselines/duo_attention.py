"""DuoAttention (Xiao et al. 2024, arXiv 2410.10819) with patterns found on the fly: retrieval heads keep everything,
streaming heads the first and the latest tokens.

How much of a retrieval head a KV head is, r_k, is estimated as kvpress does (DuoAttentionPress, on_the_fly_scoring):
its mean query and mean key, both before RoPE, take the place of every query and key of a text of `span` tokens. What is
left of the last row's attention depends on distance alone:

    a   = softmax over j < span of (RoPE_(span-1) mean q) . (RoPE_j mean k) * scale
    r_k = mean over the group's query heads of the mean over j of a_0 + ... + a_j

A head that looks at its neighbours only has r near 0. Every token of a head scores r_k. Under allocator=global_topk the
budget then goes to the heads with the largest r, which keep all of their tokens, and the others keep the protected
tokens: `sink` first and `recent` latest ones. So the budget says how many heads are retrieval heads; the last of them
keeps as many of its latest tokens as are left.

Differences: the authors learn r for a model, by optimisation on synthetic passkeys; these patterns are a download and
are left out. kvpress averages r over 50 book chapters, once a model; here the prompt itself is the text. Both fix the
number of retrieval heads instead of the budget. Computed in float32, means in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lukv.ops import attention_mass, rotate
from lukv.scoring import PromptLayer, Rope, Scorer


@dataclass(frozen=True)
class DuoAttention(Scorer):
    """`span`: tokens of the text that r is read off. `observed` is the sum of the queries before RoPE, [H, d] float64,
    and their number."""

    needs_rope: ClassVar[bool] = True
    name: str = "duo_attention"
    sink: int = 128
    recent: int = 256
    span: int = 500

    def __post_init__(self) -> None:
        if self.span < 1:
            raise ValueError(f"{self.name}: span={self.span} must be at least 1")

    def observe(
        self, observed: tuple[Tensor, int] | None, queries: Tensor, start: int, rope: Rope | None
    ) -> tuple[Tensor, int]:
        positions = torch.arange(start, start + queries.shape[1], device=queries.device)
        total, count = sum_before_rope(queries, positions, rope), queries.shape[1]
        return (total, count) if observed is None else (observed[0] + total, observed[1] + count)

    def score(self, layer: PromptLayer) -> Tensor:
        heads, tokens = layer.keys.shape[:2]
        total, count = layer.observed
        mean_key = sum_before_rope(layer.keys, layer.token_positions(), layer.rope) / tokens
        query = (total / count).float()[:, None]
        keys = mean_key.float()[:, None].expand(-1, self.span, -1)
        if layer.rope is not None:
            cos, sin = layer.rope(torch.arange(self.span, device=keys.device))
            query, keys = rotate(query, cos[-1:], sin[-1:]), rotate(keys, cos, sin)
        attention = attention_mass(query, keys, layer.scale, self.span - 1, layer.softcap)
        retrieval = attention.float().cumsum(-1).mean(-1).unflatten(0, (heads, -1)).mean(1)
        return retrieval[:, None].expand(-1, tokens).clone()


def sum_before_rope(x: Tensor, positions: Tensor, rope: Rope | None) -> Tensor:
    """The sum over the tokens of x [N, n, d] with RoPE undone, [N, d] float64."""
    x = x.double()
    if rope is not None:
        cos, sin = (part.double() for part in rope(positions))
        square = cos**2 + sin**2  # 1, except for rotary embeddings with an attention factor
        x = rotate(x, cos / square, -sin / square)
    return x.sum(1)
