"""Does a model turn its keys as lukv.scoring.rotate does? Scorers that turn them back (Scorer.needs_rope) would give
numbers on any model, but wrong ones where pairs of neighbours are turned (glm4, cohere) or some layers are not turned
at all (smollm3, cohere2).

One token alone in its prompt has the same hidden states wherever it stands, so two rows of it at two positions show
what a layer does: no table of architectures is needed.
"""

from __future__ import annotations

from collections.abc import Iterable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lukv.backend.cache import RaggedCache
from lukv.backend.rope import rope_of
from lukv.ops import rotate
from lukv.scoring import Rope, Scorer

POSITION = 3
CLOSE = 0.05
"""Of a key's length: far above what bfloat16 rounds, far below what another rotation by POSITION does."""

known: WeakKeyDictionary[PreTrainedModel, list[int]] = WeakKeyDictionary()


def check_rotation(model: PreTrainedModel, scorers: Iterable[Scorer]) -> None:
    """Raise ValueError for a scorer that turns keys back which this model turns in another way."""
    for scorer in scorers:
        if not scorer.needs_rope:
            continue
        if model not in known:
            known[model] = turned_otherwise(model)
        if known[model]:
            raise ValueError(
                f"scorer {scorer.name} turns keys back as in llama (rotary positions in halves), but layer "
                f"{known[model][0]} of this {model.config.model_type} turns them otherwise: choose another scorer"
            )


@torch.no_grad()
def turned_otherwise(model: PreTrainedModel) -> list[int]:
    """The full-attention layers whose keys are not turned by `rotate` and the model's own angles: a forward of two
    tokens. None in a model without rotary positions (gpt2): there a scorer has no angles to turn anything by."""
    cache = RaggedCache(model)
    places = torch.tensor([[0], [POSITION]], device=model.device)
    model(input_ids=torch.ones_like(places), position_ids=places, past_key_values=cache, use_cache=True)
    otherwise = []
    for number, index in enumerate(cache.model_layers):
        first, second = (cache.entries(number, row)[0].float() for row in range(2))  # [K, 1, d]
        rope = rope_of(model, index)
        if rope is None:
            continue
        expected = turned(first, rope)
        if ((second - expected).norm(dim=-1) > CLOSE * second.norm(dim=-1)).any():
            otherwise.append(index)
    return otherwise


def turned(keys: Tensor, rope: Rope) -> Tensor:
    """Keys of position 0 as they are at POSITION."""
    (cos, sin), (here, _) = (rope(torch.tensor([place], device=keys.device)) for place in (POSITION, 0))
    return rotate(keys, cos / here, sin / here)  # at position 0 there is nothing but an attention factor
