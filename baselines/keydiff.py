"""KeyDiff (Park et al. 2025, arXiv 2504.15364): keep the keys that differ from the average key.

    anchor_k = mean over the tokens of k / |k|          s = -cos(k, anchor_k)

No attention scores are needed, so it costs next to nothing, and nothing is protected by the paper.

Differences from the paper's form: one shot over the whole prompt, as in kvpress's KeyDiffPress and LU-KV's tables;
the paper evicts block by block (128 tokens) under a fixed cache while the prompt streams in. Float32 inside.
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
