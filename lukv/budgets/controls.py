"""Controls of LU-KV's budgets: is it the solved budgets of the single heads that help, or something cruder in them?

Both take the entries that the table gives at a budget and hand the same number of entries to other heads, so totals
stay exact. `LayerMean` keeps each layer's total and gives its heads the same; `ShuffledHeads` keeps the set of budgets
and deals them out at random. What LU-KV is worth beyond them is what it knows about single heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lukv.allocation import Budget, largest_remainder
from lukv.budgets.table import TableAllocator

SCOPES = ("layer", "model")


@dataclass
class LayerMean(TableAllocator):
    """Every head of a layer keeps the layer's mean; what does not divide goes to its first heads, one entry each."""

    def counts_at(self, budget: Budget, tokens: int) -> np.ndarray:
        counts = super().counts_at(budget, tokens)
        return np.stack([largest_remainder(np.ones(len(layer)), int(layer.sum()), upper=tokens) for layer in counts])


@dataclass
class ShuffledHeads(TableAllocator):
    """The budgets stand at other heads, the same ones at every budget and length. `scope`: layer (a head's budget goes
    to a head of its own layer) or model (to any head). `seed`: another seed, another order."""

    seed: int = 0
    scope: str = "model"

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise ValueError(f"scope={self.scope!r}: choose one of {', '.join(SCOPES)}")
        super().__post_init__()
        heads = np.arange(self.table.layers * self.table.kv_heads).reshape(self.table.layers, self.table.kv_heads)
        draw = np.random.default_rng(self.seed)
        shuffled = draw.permuted(heads, axis=1) if self.scope == "layer" else draw.permutation(heads.ravel())
        self._from = shuffled.reshape(heads.shape)

    def counts_at(self, budget: Budget, tokens: int) -> np.ndarray:
        return super().counts_at(budget, tokens).ravel()[self._from]
