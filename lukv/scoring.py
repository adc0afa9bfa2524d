"""What a scorer is: how much does each cached token of each KV head matter?

A scorer works on one sequence without padding (the backend cuts a padded batch into its rows), right after a layer's
prefill attention. It is a pure function of tensors: no model, no cache, no state of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Rope = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions [n] -> (cos, sin), each [n, rotary dims] float32 in the half-split layout of transformers' `rotate_half`."""


@dataclass(frozen=True)
class PromptLayer:
    """One layer's view of one prompt of T tokens, K KV heads, H = G*K query heads (group k: heads k*G .. k*G+G-1).

    keys [K, T, d] post-RoPE, values [K, T, dv], both in the model's dtype. `observed` is what `Scorer.observe` made of
    the prompt's queries. `scale` multiplies q.k; `softcap` is the logit soft cap of Gemma-2 (None elsewhere).
    """

    index: int
    layers: int
    keys: Tensor
    values: Tensor
    query_heads: int
    scale: float
    softcap: float | None = None
    observed: Any = None
    rope: Rope | None = None


@dataclass(frozen=True)
class Scorer:
    """Base of all scorers. `sink` first and `recent` last tokens are those that the scorer's own paper protects."""

    name: str = ""
    sink: int = 0
    recent: int = 0

    def observe(self, observed: Any, queries: Tensor, start: int, rope: Rope | None) -> Any:
        """Fold a piece of the prompt's post-RoPE queries [H, n, d], at positions start .. start+n-1, into what `score`
        will need of them. `observed` is the result for the pieces before it (None for the first). The prompt may come
        in any number of pieces; the result must not depend on how it was cut. Scorers without queries keep None."""
        return None

    def score(self, layer: PromptLayer) -> Tensor:
        """[K, T] float32, finite; the higher, the more worth keeping."""
        raise NotImplementedError
