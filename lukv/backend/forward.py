"""One forward of a model over a RaggedCache: the one place that makes positions and masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lukv.backend.cache import RaggedCache
from lukv.backend.lengths import check_factors
from lukv.backend.options import CACHE
from lukv.scoring import Prompt


class Loaded(Protocol):
    """What is used of a lukv.model.LoadedModel."""

    model: PreTrainedModel
    attention: str
    prefill_chunk: int | None

    def describe_prompt(self, ids: Sequence[int]) -> Prompt: ...


def run(model: PreTrainedModel, cache: RaggedCache, ids: Tensor, mask: Tensor | None, **options: Any) -> Any:
    """Run left-padded ids [B, n] after what the cache has seen -> the model's output, logits of the last column only.

    mask [B, n]: 1 for tokens, None if all are. options: further arguments of the model.
    """
    seen = cache.get_seq_length()
    if seen and len(ids) != len(cache.tokens):
        raise ValueError(f"this cache holds {len(cache.tokens)} sequences, the input has {len(ids)}")
    ahead = torch.arange(ids.shape[1], device=ids.device) if mask is None else (mask.cumsum(-1) - 1).clamp(min=0)
    tokens = torch.from_numpy(cache.tokens).to(ids.device)[:, None] if seen else ids.new_zeros(len(ids), 1)
    output = model(
        input_ids=ids,
        attention_mask=None if mask is None else torch.cat([mask.new_ones(len(ids), seen), mask], dim=1),
        position_ids=tokens + ahead,
        use_cache=True,
        logits_to_keep=1,
        **{CACHE: cache},
        **options,
    )
    cache.require_attended()
    check_factors(model)
    if cache.get_seq_length() != seen + ids.shape[1]:
        raise RuntimeError(f"{type(model).__name__} dropped the cache it was given")
    return output


def feed(model: PreTrainedModel, cache: RaggedCache, ids: Tensor, mask: Tensor | None, columns: slice) -> Tensor:
    """Run some columns of left-padded ids [B, T] -> logits [B, vocabulary]."""
    logits: Tensor = run(model, cache, ids[:, columns], None if mask is None else mask[:, columns]).logits
    return logits[:, -1]
