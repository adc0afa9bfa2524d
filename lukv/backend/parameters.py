"""What a model's attention module tells the backend about itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionParameters:
    """One layer's attention: H query heads; `scale` multiplies q.k; `softcap` is the logit soft cap (None: no cap).
    `window`: how many tokens a query sees, if the module says so."""

    query_heads: int
    scale: float
    softcap: float | None = None
    window: int | None = None
