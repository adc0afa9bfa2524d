"""What a model's attention module tells the backend about itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class AttentionParameters:
    """One layer's attention: H query heads; `scale` multiplies q.k; `softcap` is the logit soft cap (None: no cap).
    `window`: how many tokens a query sees, if the module says so. `output`: its output projection, if it has one under
    the usual name."""

    query_heads: int
    scale: float
    softcap: float | None = None
    window: int | None = None
    output: nn.Module | None = None
