"""Key norm (Devoto et al. 2024, arXiv 2406.11430): keys of small norm draw much attention, so keep those.

    s = -|k|                    L2, of the key as it is cached

It needs no attention scores and protects no token: the first tokens' keys are short by themselves.

Differences from the paper: every layer is compressed, as in kvpress's KnormPress. The authors leave the first two
layers whole, which is a budget and not a ranking. Computed in float32, whatever the cache's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True)
class KeyNorm(Scorer):
    name: str = "keynorm"

    def score(self, layer: PromptLayer) -> Tensor:
        return -layer.keys.float().norm(dim=-1)
