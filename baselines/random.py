"""Random eviction, which any scorer must beat. Every KV head keeps a random subset, the same in every run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True)
class Random(Scorer):
    """Uniform scores in [0, 1), seeded by `seed` and the layer: the same on every device and in any order of layers."""

    name: str = "random"
    seed: int = 0

    def score(self, layer: PromptLayer) -> Tensor:
        draw = np.random.default_rng([self.seed, layer.index]).random(layer.keys.shape[:2], dtype=np.float32)
        return torch.from_numpy(draw).to(layer.keys.device)
