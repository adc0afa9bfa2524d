"""What a model's attention module tells the backend about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionParameters:
    """One layer's attention: H query heads; `scale` multiplies q.k; `softcap` is the logit soft cap (None: no cap)."""

    query_heads: int
    scale: float
    softcap: float | None = None
