"""How a model's own generation config would have it drawn: repetition penalty, temperature, top_k, top_p, in the order
of transformers' generate()."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TOP_K = 50
"""What generate() takes where the generation config says nothing."""


@dataclass(frozen=True)
class Sampling:
    """top_k: only so many likeliest tokens (0: all). top_p: only the likeliest ones that together have this
    probability. repetition_penalty: divides a positive logit, multiplies a negative one, of every token that the prompt
    or the answer has had."""

    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, generation: Any) -> Sampling:
        """From a transformers GenerationConfig."""
        stated = {name: getattr(generation, name, None) for name in ("top_k", "top_p", "repetition_penalty")}
        return cls(**{"top_k": TOP_K} | {name: value for name, value in stated.items() if value is not None})

    def probabilities(self, logits: Tensor, seen: Sequence[int], temperature: float) -> Tensor:
        """[V] float32 on the CPU of one row's logits [V]; `seen`: the tokens of the prompt and of the answer so far."""
        logits = logits.float().cpu().clone()
        if self.repetition_penalty != 1 and len(seen):
            had = torch.tensor(sorted(set(seen)))
            one = logits[had]
            logits[had] = torch.where(one < 0, one * self.repetition_penalty, one / self.repetition_penalty)
        logits = logits / temperature
        if 0 < self.top_k < len(logits):
            logits[logits < logits.topk(self.top_k).values[-1]] = -torch.inf
        if self.top_p < 1:
            ordered, index = logits.sort(stable=True)
            out = ordered.softmax(-1).cumsum(-1) <= 1 - self.top_p
            out[-1] = False  # the likeliest stays
            logits[index[out]] = -torch.inf
        return logits.softmax(-1)
