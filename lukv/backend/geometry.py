"""What the layers of a model store for a token. Families call it by many names in their configs, or do not say it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from lukv.allocation import EntrySizes
from lukv.backend.cache import RaggedCache
from lukv.backend.format import choose_formats
from lukv.backend.options import CACHE
from lukv.backend.quantized import RECENT


@dataclass(frozen=True)
class LayerGeometry:
    """kv_heads: keys of `key_dim` and values of `value_dim` numbers for each token, which are `entry_bytes` in the
    model's dtype. device: where they lie."""

    kv_heads: int
    key_dim: int
    value_dim: int
    device: torch.device
    entry_bytes: int


@torch.no_grad()
def measure_geometry(model: PreTrainedModel) -> list[LayerGeometry]:
    """Of every layer that stores keys and values, sliding windows included. Runs one token through the model."""
    cache = RaggedCache(model)
    model(input_ids=torch.ones(1, 1, dtype=torch.int64, device=model.device), use_cache=True, **{CACHE: cache})
    arenas = [layer.held.arena for layer in cache.layers]
    return [LayerGeometry(a.heads, a.key_dim, a.value_dim, a.device, a.entry_bytes) for a in arenas]


def measure_sizes(model: PreTrainedModel, cache_dtype: str) -> EntrySizes:
    """Bytes of an entry in the layers with full attention. Raises ValueError where they differ from layer to layer."""
    found = measure_geometry(model)
    sizes = {find_sizes(found[index], cache_dtype) for index in RaggedCache(model).model_layers}
    if len(sizes) > 1:
        raise ValueError(
            f"the layers of this {model.config.model_type} that can be evicted store entries of different size: give "
            "budget=, the share of entries, instead of budget_bytes="
        )
    return sizes.pop()


def find_sizes(layer: LayerGeometry, cache_dtype: str) -> EntrySizes:
    formats = choose_formats(cache_dtype, layer.key_dim, layer.value_dim)
    if formats is None:
        return EntrySizes(layer.entry_bytes, layer.entry_bytes, 0)
    return EntrySizes(layer.entry_bytes, formats[0].nbytes + formats[1].nbytes, RECENT)


def count_kv_heads(model: PreTrainedModel) -> int:
    """KV heads of each layer with full attention. Raises ValueError where they differ from layer to layer."""
    found = measure_geometry(model)
    counts = sorted({found[index].kv_heads for index in RaggedCache(model).model_layers})
    if len(counts) > 1:
        raise ValueError(
            f"the layers of this {model.config.model_type} that can be evicted have {' or '.join(map(str, counts))} KV "
            "heads: budget tables and calibration need the same number in all of them"
        )
    return counts[0]
