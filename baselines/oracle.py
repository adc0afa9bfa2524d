"""NOT A DEPLOYABLE METHOD: rank by the long-horizon utility itself. No scorer can keep more utility.

    U[k, j] = max over t and over h in group k of A_t[h, j] n[h, j]      lukv/budgets/oracle.py

Utility is known only after the answer. So the evaluation lets the full cache answer each question first, measures the
utility, and hands it in; each question then has a compressed cache of its own. At the same budgets, the distance
between a scorer and this one is due to the scorer. It is an upper bound of the utility that is kept, not of the
benchmark's score: utility belongs to single tokens, while an answer may need several together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True)
class Oracle(Scorer):
    """`score` raises ValueError if no utility is handed in, or that of another prompt."""

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
