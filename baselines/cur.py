"""CUR (CurDKV, Sengupta et al. 2025, arXiv 2509.15038): keep the tokens with much leverage on keys and on values.

    l(X)[j] = |x_j|^2           of X = K or V, or of X G with a random Gaussian G [d, sketch]
    s       = l(K) * l(V), divided by its sum over the tokens

| config      | sketch | window                                              | who                                  |
|-------------|--------|-----------------------------------------------------|--------------------------------------|
| cur         | 20     | none                                                | the paper's random projection        |
| cur_kvpress | none   | l is divided by its sum over each 16 tokens         | kvpress's CURPress, default settings |

The first 4 tokens are protected. Differences: G is seeded by `seed`, the layer and the KV head, and is another for keys
and for values where their widths differ; theirs is drawn anew at every call. Computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lukv.ops import draw_sketch
from lukv.scoring import PromptLayer, Scorer

TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class CUR(Scorer):
    """`sketch`: columns of G, 0 for none. `window`: tokens over which l is shared out, 0 for none."""

    name: str = "cur"
    sink: int = 4
    sketch: int = 20
    window: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.sketch < 0 or self.window < 0:
            raise ValueError(f"{self.name}: sketch={self.sketch} and window={self.window} must not be negative")

    def score(self, layer: PromptLayer) -> Tensor:
        scores = self._leverage(layer, layer.keys) * self._leverage(layer, layer.values)
        return scores / scores.sum(-1, keepdim=True).clamp(min=TINY)

    def _leverage(self, layer: PromptLayer, states: Tensor) -> Tensor:
        states = states.float()
        if self.sketch:
            states = states @ draw_sketch(layer, states.shape[-1], self.sketch, self.seed)
        leverage = states.square().sum(-1)
        if self.window:
            tokens = leverage.shape[1]
            windows = pad(leverage, (0, -tokens % self.window)).unflatten(1, (-1, self.window))
            leverage = (windows / windows.sum(-1, keepdim=True).clamp(min=TINY)).flatten(1)[:, :tokens]
        return leverage
