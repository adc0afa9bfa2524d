"""Global top-k: the heads of all layers compete by their raw scores. KVzip's own budgets (arXiv 2505.23416).

Every head keeps the protected tokens. All other entries of the prompt, in all layers and heads, are ranked in one list.
So scores must be comparable between layers, as KVzip's are, which are probabilities.

Differences from the authors' code and kvpress: the budget is met to the entry, while theirs cut at a threshold or
truncate. At equal scores the heads share in proportion to their ties. If the budget does not exceed the protected
tokens, every head keeps the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lukv.allocation import Allocator, Budget, HeadScores, count_winners, largest_remainder


@dataclass(frozen=True)
class GlobalTopK(Allocator):
    """It has no parameters."""

    def counts_of_layers(self, budget: Budget, layers: Sequence[HeadScores]) -> list[Tensor]:
        tokens, heads, free = layers[0].tokens, layers[0].heads, ~layers[0].protected
        protected = tokens - int(free.sum())
        rest = budget.entries(tokens, len(layers) * heads) - protected * len(layers) * heads
        if rest <= 0:
            kept = largest_remainder(np.ones(len(layers) * heads), rest + protected * len(layers) * heads, upper=tokens)
        else:
            scores = torch.cat([layer.scores[:, free.to(layer.scores.device)].to(free.device) for layer in layers])
            kept = protected + count_winners(scores, rest)
        return list(torch.from_numpy(kept).split(heads))
