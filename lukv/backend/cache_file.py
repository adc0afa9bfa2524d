"""A compressed cache as one safetensors file: the kept entries without their free rows, and what they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, from_numpy
from transformers import PreTrainedModel

from lukv.artifacts import write_atomically
from lukv.backend.cache import CacheState, LayerState, RaggedCache
from lukv.backend.config import find_windows, hash_config, hash_weights
from lukv.backend.format import choose_formats
from lukv.backend.geometry import LayerGeometry, measure_geometry
from lukv.backend.quantized import Part
from lukv.names import check_cache_dtype

FORMATS = {"lukv-cache-1": "in the model's dtype", "lukv-cache-2": "quantized"}
NAMES = ("keys", "values", "lengths")
KINDS = ("", "packed_")
"""What stands before the names of an arena's first and second part."""


def save(cache: RaggedCache, path: str | Path) -> None:
    """Write what the cache holds now. Raises RuntimeError for one without a prompt."""
    state, config = cache.state(), cache.options.config
    tensors: dict[str, Tensor] = {"tokens": from_numpy(state.tokens)}
    for i, layer in enumerate(state.layers):
        for kind, part in zip(KINDS, layer.parts, strict=False):
            each = zip(NAMES, (part.keys, part.values, from_numpy(part.lengths)), strict=True)
            tensors |= {f"{kind}{name}.{i}": tensor.cpu().contiguous() for name, tensor in each}
        tensors[f"positions.{i}"] = layer.positions.cpu().contiguous()
    plain, quantized = FORMATS
    facts = {
        "format": plain if state.cache_dtype == "auto" else quantized,
        "cache_dtype": state.cache_dtype,
        "model": config.model_type,
        "config_hash": hash_config(config),
        "weights_hash": cache.hash_weights(),
        "layers": len(state.layers),
        "seen": state.seen,
        "eviction": repr(cache.options.eviction),
    }
    write_atomically(path, to_bytes(tensors, metadata={"lukv": json.dumps(facts)}))


def load(path: str | Path, model: PreTrainedModel, attention: str = "auto") -> RaggedCache:
    """The cache that `save` wrote, for the same model. Its state is the one that `rollback` goes back to.

    Raises FileNotFoundError, or ValueError for a file that is broken or belongs to another model.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("lukv", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a cache file: {error}") from error
    geometry = check(path, facts, tensors, model)
    layers = []
    for i in range(facts["layers"]):
        kinds = [kind for kind in KINDS if f"{kind}keys.{i}" in tensors]
        layers.append(LayerState([read_part(tensors, kind, i) for kind in kinds], tensors[f"positions.{i}"]))
    state = CacheState(facts["seen"], tensors["tokens"].numpy(), layers, facts.get("cache_dtype", "auto"))
    return RaggedCache.from_state(model, state, [layer.device for layer in geometry], attention)


def read_part(tensors: dict[str, Tensor], kind: str, layer: int) -> Part:
    keys, values, lengths = (tensors[f"{kind}{name}.{layer}"] for name in NAMES)
    return Part(keys, values, lengths.numpy())


def check(
    path: str | Path, facts: dict[str, Any], tensors: dict[str, Tensor], model: PreTrainedModel
) -> list[LayerGeometry]:
    """What the model's layers store. Raise ValueError unless the file is whole and belongs to the model."""
    if facts.get("format") not in FORMATS:
        raise ValueError(f"{path}: not a cache file of format {' or '.join(FORMATS)}")
    config = model.config.get_text_config(decoder=True)
    windows = find_windows(model.config)
    layers = len(windows)
    if facts["config_hash"] != hash_config(config) or facts["layers"] != layers:
        raise ValueError(f"{path}: belongs to another model ({facts['model']}, config {facts['config_hash']})")
    if facts.get("weights_hash") != hash_weights(model):
        raise ValueError(f"{path}: belongs to other weights of this {facts['model']} ({facts.get('weights_hash')})")
    cache_dtype = facts.get("cache_dtype", "auto")
    check_cache_dtype(cache_dtype)
    quantized = [i for i, window in enumerate(windows) if window is None and cache_dtype != "auto"]
    parts = {"tokens", *(f"{name}.{i}" for name in (*NAMES, "positions") for i in range(layers))}
    parts |= {f"packed_{name}.{i}" for name in NAMES for i in quantized}
    if missing := sorted(parts - set(tensors)):
        raise ValueError(f"{path}: {missing[0]} is missing")
    geometry = measure_geometry(model)
    for i, layer in enumerate(geometry):
        sizes = [("", layer.key_dim, layer.value_dim)]
        formats = choose_formats(cache_dtype, layer.key_dim, layer.value_dim)
        if formats is not None and i in quantized:
            sizes.append(("packed_", formats[0].nbytes, formats[1].nbytes))
        found = [read_part(tensors, kind, i) for kind, _, _ in sizes]
        fit = [
            len(part.lengths) == len(tensors["tokens"]) * layer.kv_heads
            and not (part.lengths < 0).any()
            and part.keys.shape == (part.lengths.sum(), key_size)
            and part.values.shape == (part.lengths.sum(), value_size)
            for part, (_, key_size, value_size) in zip(found, sizes, strict=True)
        ]
        if not all(fit) or len(tensors[f"positions.{i}"]) != sum(int(part.lengths.sum()) for part in found):
            raise ValueError(f"{path}: the sizes of layer {i} do not fit together")
    return geometry
