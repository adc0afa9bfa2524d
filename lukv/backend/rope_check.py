"""Does a model rotate its keys as lukv.scoring.rotate does?

Scorers that undo the rotation (Scorer.needs_rope) give numbers on any model. They are wrong where the model rotates
pairs of neighbours (glm4, cohere) or does not rotate in some layers (smollm3, cohere2).

The check needs no table of architectures. A single token has the same hidden states at any position, so its keys at two
positions differ by the rotation alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lukv.backend.cache import RaggedCache
from lukv.backend.options import CACHE
from lukv.backend.rope import make_rope
from lukv.ops import rotate
from lukv.scoring import Rope, Scorer

POSITION = 3
CLOSE = 0.05
"""Tolerance, as a share of the key's norm: far above bfloat16's rounding, far below what another rotation does."""

known: WeakKeyDictionary[PreTrainedModel, list[int]] = WeakKeyDictionary()


def check_rotation(model: PreTrainedModel, scorers: Iterable[Scorer]) -> None:
    """Raise ValueError if a scorer undoes a rotation that is not this model's."""
    for scorer in scorers:
        if not scorer.needs_rope:
            continue
        if model not in known:
            known[model] = find_mismatched_layers(model)
        if known[model]:
            raise ValueError(
                f"scorer {scorer.name} turns keys back as in llama (rotary positions in halves), but layer "
                f"{known[model][0]} of this {model.config.model_type} turns them otherwise: choose another scorer"
            )


@torch.no_grad()
def find_mismatched_layers(model: PreTrainedModel) -> list[int]:
    """Indices of the full-attention layers that do not rotate keys as `rotate` does with the model's own angles.

    Runs two tokens through the model. Empty for a model without rotary positions (gpt2), which has no angles to undo.
    """
    cache = RaggedCache(model)
    positions = torch.tensor([[0], [POSITION]], device=model.device)
    model(input_ids=torch.ones_like(positions), position_ids=positions, use_cache=True, **{CACHE: cache})
    mismatched = []
    for number, index in enumerate(cache.model_layers):
        first, second = (cache.view_entries(number, row)[0].float() for row in range(2))  # [K, 1, d]
        rope = make_rope(model, index)
        if rope is None:
            continue
        expected = rotate_to_position(first, rope)
        if ((second - expected).norm(dim=-1) > CLOSE * second.norm(dim=-1)).any():
            mismatched.append(index)
    return mismatched


def rotate_to_position(keys: Tensor, rope: Rope) -> Tensor:
    """Keys of position 0 as they are at POSITION."""
    (cos, sin), (factor, _) = (rope(torch.tensor([at], device=keys.device)) for at in (POSITION, 0))
    return rotate(keys, cos / factor, sin / factor)  # cos is 1 at position 0, but for YaRN's attention factor
