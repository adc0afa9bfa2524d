"""KeyDiff (Park et al. 2025, arXiv 2504.15364): keep the keys that differ from the average key.

    anchor_k = mean over the tokens of k / |k|          s = -cos(k, anchor_k)

It needs no attention scores, so it costs next to nothing. The paper protects no tokens.

Differences from the paper's form: the whole prompt is ranked at once, as in kvpress's KeyDiffPress and LU-KV's tables.
The paper evicts block by block (128 tokens) while the prompt streams into a cache of fixed size. Computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True)
class KeyDiff(Scorer):
    name: str = "keydiff"

    def score(self, layer: PromptLayer) -> Tensor:
        direction = F.normalize(layer.keys.float(), dim=-1)
        anchor = F.normalize(direction.mean(1), dim=-1)
        return -(direction @ anchor[..., None]).squeeze(-1)
