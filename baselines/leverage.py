"""Leverage scores of keys (Compactor, Chari and Van Durme 2025, arXiv 2507.08143): keep the outliers among the keys.

    X = (K - mean over the tokens) Phi          K before RoPE, Phi [d, sketch] Gaussian / sqrt(sketch)
    l = diag(X (X^T X + 0.01 I)^-1 X^T)         s = (l - mean) / deviation, over all heads of the layer

No queries are needed. This is kvpress's LeverageScorePress. Differences: Phi is seeded by `seed`, the layer and the KV
head, theirs is drawn anew at every call; the system is solved in float64. The authors' program computes l and its mean
and deviation in chunks of 512 tokens, with 0.005 I.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lukv.ops import draw_sketch, rotate
from lukv.scoring import PromptLayer, Scorer

RIDGE = 0.01


@dataclass(frozen=True)
class Leverage(Scorer):
    """`sketch`: columns of Phi."""

    needs_rope: ClassVar[bool] = True
    name: str = "leverage"
    sketch: int = 48
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sketch < 1:
            raise ValueError(f"{self.name}: sketch={self.sketch} must be at least 1")

    def score(self, layer: PromptLayer) -> Tensor:
        return standardize(find_leverage(layer, self.sketch, self.seed))


def find_leverage(layer: PromptLayer, sketch: int, seed: int) -> Tensor:
    """l [K, T] float32."""
    keys = layer.keys.double()
    if layer.rope is not None:
        cos, sin = (part.double() for part in layer.rope(layer.token_positions()))
        square = cos**2 + sin**2  # 1, except for rotary embeddings with an attention factor
        keys = rotate(keys, cos / square, -sin / square)
    phi = draw_sketch(layer, keys.shape[-1], sketch, seed).double() / sketch**0.5
    x = (keys - keys.mean(1, keepdim=True)) @ phi
    gram = x.mT @ x + RIDGE * torch.eye(sketch, dtype=x.dtype, device=x.device)
    return (x * torch.linalg.solve(gram, x.mT).mT).sum(-1).clamp(min=0).float()


def standardize(scores: Tensor) -> Tensor:
    """Scores [K, T] less their mean, over their deviation; 0 where there is a single one."""
    return (scores - scores.mean()) / scores.std(correction=min(1, scores.numel() - 1)).clamp(min=1e-6)
