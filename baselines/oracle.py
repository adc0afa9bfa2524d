"""NOT A DEPLOYABLE METHOD: rank by the long-horizon utility itself. The upper bound that a scorer can reach.

The utility of a context token is what the answer's own decode steps attend to (lukv/oracle.py): it is known only
after the answer has been written, so it is handed in from outside, for one context at a time:

    Oracle(utility=[layer 0's [K, T] tensor, layer 1's, ...])

What is left between a method and this one, at the same budgets, is the scorer's fault; what is left at the same
scores, between two allocators, is the allocator's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True, eq=False)
class Oracle(Scorer):
    """`utility`: one [K, T] tensor a layer, of the very prompt that is scored (else ValueError)."""

    name: str = "oracle"
    utility: Sequence[Tensor] = ()

    def score(self, layer: PromptLayer) -> Tensor:
        if layer.index >= len(self.utility):
            raise ValueError(
                f"oracle: utilities of {len(self.utility)} layers are given, layer {layer.index} is asked for"
            )
        scores = self.utility[layer.index]
        if scores.shape != layer.keys.shape[:2]:
            raise ValueError(
                f"oracle: the utility of layer {layer.index} is {list(scores.shape)}, the prompt has "
                f"{list(layer.keys.shape[:2])}: utilities belong to one prompt"
            )
        return scores.float().to(layer.keys.device)
