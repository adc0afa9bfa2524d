"""NOT A DEPLOYABLE METHOD: rank by the long-horizon utility itself. The upper bound that a scorer can reach.

    U[k, j] = max over the answer's decode steps and over the query heads h of group k of attention to j * weight of v_j

(lukv/budgets/oracle.py). It is known only after the answer: the evaluation lets the full cache answer each question
first and hands in what came out, so that each question has a compressed cache of its own. What is left between a
method and this one, at the same budgets, is the scorer's fault; what is left at the same scores, between two
allocators, the allocator's. An upper bound in the utility that is kept, not in the benchmark's score: utility is one
token's, while a score needs tokens together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True)
class Oracle(Scorer):
    """Raises ValueError where no utility, or that of another prompt, is handed in."""

    needs_utility: ClassVar[bool] = True
    name: str = "oracle"

    def score(self, layer: PromptLayer) -> Tensor:
        utility = layer.observed
        if utility is None:
            raise ValueError(
                f"scorer {self.name}: no utility of layer {layer.index} is given; job=evaluate measures it"
            )
        if utility.shape != layer.keys.shape[:2]:
            raise ValueError(
                f"scorer {self.name}: the utility of layer {layer.index} is {list(utility.shape)}, the prompt has "
                f"{list(layer.keys.shape[:2])}: utilities belong to one prompt"
            )
        return utility.float().to(layer.keys.device)
