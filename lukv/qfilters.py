"""Q-Filters (Godey et al. 2025, arXiv 2503.02812): a head's queries lie to one side; keep the keys that lie there too.

    v_h = first right singular vector of the queries of query head h, after RoPE, [tokens, d]
    f_k = mean over the G query heads of group k of sign(sum_t q_t . v_h) v_h
    s   = f_k . key

The queries are those of all tokens of the calibration's contexts. Only their sums are kept: v_h is the first
eigenvector of sum q q^T, and sum q decides its sign. At run time there is one product per key, and no query is needed.

Differences from the authors' program: it takes 3000 random queries of its contexts, here all count; it turns v_h to
the side of most queries, here to that of their sum. kvpress's QFilterPress reads the authors' filters, which have the
opposite sign, and negates the product; the same filters give the same scores. Computed in float32, sums in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lukv.learned import LearnedScorer, Probe
from lukv.scoring import PromptLayer, Rope, Scorer
from lukv.selection import Protection

Moments = tuple[Tensor, Tensor]
"""sum q [H, d] and sum q q^T [H, d, d] of queries, float64."""


@dataclass(frozen=True)
class QueryMoments(Scorer):
    """It sees a prompt's queries for the fit, and ranks nothing."""

    name: str = "query_moments"

    def observe(self, observed: Moments | None, queries: Tensor, start: int, rope: Rope | None) -> Moments:
        q = queries.double()
        total, outer = q.sum(1), q.mT @ q
        return (total, outer) if observed is None else (observed[0] + total, observed[1] + outer)


@dataclass(frozen=True)
class QFilters(LearnedScorer):
    kind: ClassVar[str] = "set of Q-Filters"
    name: str = "qfilters"

    @property
    def watcher(self) -> Scorer:
        return QueryMoments()

    def begin_fit(self) -> FilterFit:
        return FilterFit()

    def count_weights(self, head_dim: int, value_dim: int) -> int:
        return head_dim

    def score(self, layer: PromptLayer) -> Tensor:
        return (layer.keys.float() @ self.read_weights(layer)[..., None]).squeeze(-1)


@dataclass
class FilterFit:
    """Sums over all contexts, float64: `total` [layers, K, G, d] and `outer` [layers, K, G, d, d]."""

    state: dict[str, np.ndarray] = field(default_factory=dict)

    def add(self, layers: Sequence[PromptLayer], utility: Tensor, protection: Protection) -> None:
        """Add one context. Neither its utility nor the protection matters."""
        total, outer = (torch.stack(sums).cpu().numpy() for sums in zip(*(x.observed for x in layers), strict=True))
        kv_heads = len(layers[0].keys)
        shape = len(outer), kv_heads, outer.shape[1] // kv_heads, *outer.shape[2:]
        sums = {"total": total.reshape(shape[:-1]), "outer": outer.reshape(shape), "contexts": np.ones(())}
        if self.state and self.state["outer"].shape != shape:
            raise ValueError("the saved state of the Q-Filters belongs to another model or version")
        self.state = {name: np.asarray(self.state.get(name, 0) + value) for name, value in sums.items()}

    def filters(self) -> np.ndarray:
        """f [layers, K, d] float64. Raises ValueError if there is no context."""
        if not self.state:
            raise ValueError("no context was measured: there is nothing to make Q-Filters of")
        first = np.linalg.eigh(self.state["outer"]).eigenvectors[..., -1]
        side = np.where((self.state["total"] * first).sum(-1, keepdims=True) < 0, -1.0, 1.0)
        return np.asarray((side * first).mean(2))

    def save(self, path: str | Path, metadata: Mapping[str, Any]) -> None:
        about = {**metadata, "contexts": int(self.state.get("contexts", 0))}
        Probe(self.filters().astype(np.float32), about, QFilters.kind).save(path)
