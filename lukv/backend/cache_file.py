"""A compressed cache as one safetensors file: the kept entries without their free rows, and what they belong to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from lukv.backend.arena import Arena
from lukv.backend.cache import RaggedCache
from lukv.backend.config import config_hash

FORMAT = "lukv-cache-1"
PARTS = ("keys", "values", "lengths", "positions")


def save(cache: RaggedCache, path: str | Path) -> None:
    """Write what the cache holds now. Raises RuntimeError for one without a prompt."""
    tensors: dict[str, Tensor] = {"tokens": torch.from_numpy(cache.tokens)}
    for i, layer in enumerate(cache.layers):
        if layer.arena is None:
            raise RuntimeError("the prompt is not in the cache yet")
        keys, values = layer.arena.packed()
        positions = [layer.positions_of(sequence).int() for sequence in range(len(layer.arena.lengths))]
        parts = (keys, values, torch.from_numpy(layer.arena.lengths), torch.cat(positions))
        tensors |= {f"{name}.{i}": part.cpu().contiguous() for name, part in zip(PARTS, parts, strict=True)}
    facts = {
        "format": FORMAT,
        "model": cache.plan.config.model_type,
        "config_hash": config_hash(cache.plan.config),
        "weights_hash": cache.weights_hash(),
        "layers": len(cache.layers),
        "seen": cache.get_seq_length(),
        "eviction": repr(cache.plan.eviction),
    }
    save_file(tensors, path, metadata={"lukv": json.dumps(facts)})


def load(path: str | Path, model: PreTrainedModel, attention: str = "auto") -> RaggedCache:
    """The cache `save` wrote, for the same model; its state is the one `rollback` goes back to. Raises
    FileNotFoundError, or ValueError for a file that is broken or belongs to another model."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("lukv", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a cache file: {error}") from error
    cache = RaggedCache(model, attention=attention)
    check(path, facts, tensors, cache)
    for i, (layer, module) in enumerate(zip(cache.layers, model.get_decoder().layers, strict=True)):
        device = next(module.parameters()).device
        keys, values, lengths, positions = (tensors[f"{name}.{i}"] for name in PARTS)
        layer.tokens, layer.seen = tensors["tokens"].numpy().copy(), facts["seen"]
        layer.arena = Arena(keys.to(device), values.to(device), lengths.numpy(), batch=len(layer.tokens))
        layer.adopt(positions.to(device))
    return cache


def check(path: str | Path, facts: dict[str, Any], tensors: dict[str, Tensor], cache: RaggedCache) -> None:
    """Raise ValueError unless the file is whole and belongs to the cache's model."""
    if facts.get("format") != FORMAT:
        raise ValueError(f"{path}: not a cache file of format {FORMAT}")
    config = cache.plan.config
    if facts["config_hash"] != config_hash(config) or facts["layers"] != len(cache.layers):
        raise ValueError(f"{path}: belongs to another model ({facts['model']}, config {facts['config_hash']})")
    if facts.get("weights_hash") != cache.weights_hash():
        raise ValueError(f"{path}: belongs to other weights of this {facts['model']} ({facts.get('weights_hash')})")
    wanted = {"tokens", *(f"{name}.{i}" for name in PARTS for i in range(len(cache.layers)))}
    if missing := sorted(wanted - set(tensors)):
        raise ValueError(f"{path}: {missing[0]} is missing")
    heads = len(tensors["tokens"]) * config.num_key_value_heads
    for i in range(len(cache.layers)):
        lengths = tensors[f"lengths.{i}"].numpy()
        if len(lengths) != heads or (lengths < 0).any() or not np.all(lengths.sum() == rows_of(tensors, i)):
            raise ValueError(f"{path}: the sizes of layer {i} do not fit together")


def rows_of(tensors: dict[str, Tensor], layer: int) -> np.ndarray:
    return np.array([len(tensors[f"{name}.{layer}"]) for name in ("keys", "values", "positions")])
