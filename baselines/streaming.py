"""StreamingLLM (Xiao et al. 2023, arXiv 2309.17453): keep the first tokens and the latest ones, whatever they are.

Differences from the authors' code: kept tokens keep their positions, as in kvpress's StreamingLLMPress. The authors
renumber them inside the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lukv.scoring import PromptLayer, Scorer


@dataclass(frozen=True)
class Streaming(Scorer):
    """The score is the position. The `sink` first tokens are protected."""

    name: str = "streaming"
    sink: int = 4

    def score(self, layer: PromptLayer) -> Tensor:
        return layer.token_positions().float().expand(layer.keys.shape[:2])
