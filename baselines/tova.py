"""TOVA (Oren et al. 2024, arXiv 2401.06104): keep what the last token attends to.

    s = mean over all H query heads of softmax(q_last . K * scale)        the same for every KV head of the layer

| config       | last token                                                     | who                  |
|--------------|----------------------------------------------------------------|----------------------|
| tova         | ranked by the attention that it pays to itself                 | the paper's program  |
| tova_kvpress | protected, `recent` = 1                                        | kvpress's TOVAPress  |

Differences from the paper's program: it evicts one token at every step, so what a prompt of T tokens leaves depends on
all of its rows; here, as in kvpress, the whole prompt is ranked once, by its last row. Everything is float32. A later
eviction looks at one KV head at a time, so the mean is then over its own group of query heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lukv.ops import attention_mass
from lukv.scoring import PromptLayer, Rope, Scorer


@dataclass(frozen=True)
class TOVA(Scorer):
    name: str = "tova"

    def observe(self, observed: Tensor | None, queries: Tensor, start: int, rope: Rope | None) -> Tensor:
        """The last query so far, [H, 1, d]."""
        return queries[:, -1:].clone()  # a view would keep all queries of the prompt in memory

    def score(self, layer: PromptLayer) -> Tensor:
        heads, tokens = layer.keys.shape[:2]
        attention = attention_mass(layer.observed, layer.keys, layer.scale, tokens - 1, layer.softcap)
        return attention.float().mean(0).expand(heads, -1).clone()
