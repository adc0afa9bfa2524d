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
from lukv.backend.geometry import LayerGeometry, measure_geometry

FORMAT = "lukv-cache-1"
PARTS = ("keys", "values", "lengths", "positions")


def save(cache: RaggedCache, path: str | Path) -> None:
    """Write what the cache holds now. Raises RuntimeError for one without a prompt."""
    state, config = cache.state(), cache.options.config
    tensors: dict[str, Tensor] = {"tokens": from_numpy(state.tokens)}
    for i, layer in enumerate(state.layers):
        parts = (layer.keys, layer.values, from_numpy(layer.lengths), layer.positions)
        tensors |= {f"{name}.{i}": part.cpu().contiguous() for name, part in zip(PARTS, parts, strict=True)}
    facts = {
        "format": FORMAT,
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
        keys, values, lengths, positions = (tensors[f"{name}.{i}"] for name in PARTS)
        layers.append(LayerState(keys, values, lengths.numpy(), positions))
    state = CacheState(facts["seen"], tensors["tokens"].numpy(), layers)
    return RaggedCache.from_state(model, state, [layer.device for layer in geometry], attention)


def check(
    path: str | Path, facts: dict[str, Any], tensors: dict[str, Tensor], model: PreTrainedModel
) -> list[LayerGeometry]:
    """What the model's layers store. Raise ValueError unless the file is whole and belongs to the model."""
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path}: not a cache file of format {FORMAT}")
    config = model.config.get_text_config(decoder=True)
    layers = len(find_windows(model.config))
    if facts["config_hash"] != hash_config(config) or facts["layers"] != layers:
        raise ValueError(f"{path}: belongs to another model ({facts['model']}, config {facts['config_hash']})")
    if facts.get("weights_hash") != hash_weights(model):
        raise ValueError(f"{path}: belongs to other weights of this {facts['model']} ({facts.get('weights_hash')})")
    parts = {"tokens", *(f"{name}.{i}" for name in PARTS for i in range(layers))}
    if missing := sorted(parts - set(tensors)):
        raise ValueError(f"{path}: {missing[0]} is missing")
    geometry = measure_geometry(model)
    for i, layer in enumerate(geometry):
        keys, values, lengths, positions = (tensors[f"{name}.{i}"] for name in PARTS)
        entries = int(lengths.sum())
        wanted = [(entries, layer.key_dim), (entries, layer.value_dim), (entries,)]
        found = [tuple(part.shape) for part in (keys, values, positions)]
        if len(lengths) != len(tensors["tokens"]) * layer.kv_heads or (lengths < 0).any() or found != wanted:
            raise ValueError(f"{path}: the sizes of layer {i} do not fit together")
    return geometry
