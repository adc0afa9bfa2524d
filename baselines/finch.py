"""FINCH (Corallo and Papotti 2024, TACL, doi 10.1162/tacl_a_00716): keep what the question attends to.

The question is the end of the prompt, W tokens. With row t at position t:

    a_h = mean over the W rows of t * softmax(q_t . K * scale)        causal, over all T keys, cut to the first T - W
    s_k = mean over the G query heads of group k of a_h

The factor evens out that a late row spreads its attention over more tokens. The question itself ranks first. This is
kvpress's FinchPress with rerotate_keys=False, which counts the tokens before a row and not the row itself.

Differences from the paper: kept tokens keep their positions, while the authors move keys together and turn them to
their new ones; the prompt is ranked at once, while theirs streams in chunk by chunk, each behind what was kept of the
earlier ones. Computed in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lukv.ops import attention_mass
from lukv.scoring import PromptLayer, QueryKeeper


@dataclass(frozen=True)
class Finch(QueryKeeper):
    needs_question: ClassVar[bool] = True
    name: str = "finch"

    def score(self, layer: PromptLayer) -> Tensor:
        """Raises ValueError where the question's length is not known, and for a prompt that was evicted before."""
        if layer.question is None or layer.positions is not None:
            raise ValueError(
                f"scorer {self.name} looks from the question, once, at the end of a whole prompt: give its length with "
                "compress(..., questions=[tokens of each row])"
            )
        heads, tokens = layer.keys.shape[:2]
        before = tokens - layer.question
        scores = torch.ones(heads, tokens, device=layer.keys.device)
        if 0 < before < tokens:
            rows = self.read_queries(layer)[:, before:]
            weights = torch.arange(before, tokens, device=rows.device)
            seen = attention_mass(
                rows, layer.keys, layer.scale, before, layer.softcap, columns=before, row_weights=weights
            )
            scores[:, :before] = seen.float().unflatten(0, (heads, -1)).mean(1)
            scores[:, before:] = scores[:, :before].max() + 1
        return scores
