"""Controls of LU-KV's budgets: do the solved budgets of single heads help, or would something cruder do as well?

Both controls take the entries that the table gives at a budget and hand the same number of entries to other heads, so
totals stay exact. `LayerMean` keeps each layer's total and gives all heads of a layer the same. `ShuffledHeads` keeps
the set of budgets and assigns them to heads at random. LU-KV must beat both to show that it knows about single heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lukv.allocation import Budget, largest_remainder
from lukv.budgets.table import TableAllocator

SCOPES = ("layer", "model")


@dataclass
class LayerMean(TableAllocator):
    """Every head of a layer keeps the layer's mean. What does not divide evenly goes to its first heads."""

    def counts_at(self, budget: Budget, tokens: int) -> np.ndarray:
        counts = super().counts_at(budget, tokens)
        return np.stack([largest_remainder(np.ones(len(layer)), int(layer.sum()), upper=tokens) for layer in counts])


@dataclass
class ShuffledHeads(TableAllocator):
    """The table's budgets in a random order over the heads. The order is the same at every budget and length.

    `scope`: `layer` exchanges budgets between the heads of a layer, `model` between all heads. `seed` decides the
    order. Raises ValueError for another scope.
    """

    seed: int = 0
    scope: str = "model"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r}: choose one of {', '.join(SCOPES)}")
        super().__post_init__()
        heads = np.arange(self.table.layers * self.table.kv_heads).reshape(self.table.layers, self.table.kv_heads)
        rng = np.random.default_rng(self.seed)
        shuffled = rng.permuted(heads, axis=1) if self.scope == "layer" else rng.permutation(heads.ravel())
        self._source = shuffled.reshape(heads.shape)

    def counts_at(self, budget: Budget, tokens: int) -> np.ndarray:
        return super().counts_at(budget, tokens).ravel()[self._source]
