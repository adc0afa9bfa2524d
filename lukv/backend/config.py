"""What the backend needs to know of a transformers config."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

RECURRENT = "keep a state of fixed size, no keys and values of each token"
SPARSE = "choose or merge their keys by themselves"
KINDS = {
    "full_attention": "",
    "sliding_attention": "",
    "chunked_attention": "see a chunk of the input",
    "conv": RECURRENT,
    "hybrid": "hold keys and values beside a recurrent state",
    "hybrid_sliding": "hold keys and values beside a recurrent state",
    "linear_attention": RECURRENT,
    "mamba": RECURRENT,
    "recurrent": RECURRENT,
    "indexed_attention": SPARSE,
    "compressed_sparse_attention": SPARSE,
    "heavily_compressed_attention": SPARSE,
    "minimax_m3_sparse": SPARSE,
}
"""What transformers calls the layers of a model -> why this backend cannot run them ("": it can)."""
GEOMETRY = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
    "max_position_embeddings",
)


def hash_config(config: PreTrainedConfig) -> str:
    """Twelve hex digits of the network's geometry. They do not depend on the model's path, on its dtype or on the
    version of transformers."""
    text = config.get_text_config(decoder=True)
    fields = {field: read_field(text, field) for field in GEOMETRY}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def hash_weights(model: PreTrainedModel, each: int = 64) -> str:
    """Twelve hex digits that tell weights of the same geometry apart. To be quick, they are made of `each` values of
    every parameter, spread evenly. Values are rounded to bfloat16, so that the dtype of loading makes no difference."""
    whole = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.is_meta:  # offloaded to disk
            continue
        flat = parameter.detach().flatten()
        some = flat[:: max(1, len(flat) // each)][:each]
        whole.update(name.encode())
        whole.update(some.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return whole.hexdigest()[:12]


def find_windows(config: PreTrainedConfig) -> list[int | None]:
    """The sliding window of each layer that stores keys and values, None for full attention. The last layers of some
    models (gemma3n) store nothing and read what an earlier one holds.

    Raises ValueError for a model that this backend cannot run, because it has other kinds of layers or no layer with
    full attention (then there is nothing to evict).
    """
    config = config.get_text_config(decoder=True)
    window = read_field(config, "sliding_window")
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # mistral, phi3: one window for all layers; up to its size it is none (lengths.py)
        wide = window is None or window >= config.max_position_embeddings
        kinds = ["full_attention" if wide else "sliding_attention"] * config.num_hidden_layers
    for kind in sorted(set(kinds)):
        if why := KINDS.get(kind, "are not known here"):
            raise ValueError(
                f"{config.model_type} has {kind} layers, which {why}: only full and sliding attention are supported"
            )
    kinds = kinds[: len(kinds) - count_readers(config)]
    if "full_attention" not in kinds:
        raise ValueError(f"every layer of this {config.model_type} has a sliding window of {window}: nothing to evict")
    windows = window if isinstance(window, list) else [window] * len(kinds)
    return [size if kind == "sliding_attention" else None for kind, size in zip(kinds, windows, strict=False)]


def count_readers(config: PreTrainedConfig) -> int:
    """How many layers at the end read the keys and values of an earlier layer and store none of their own."""
    config = config.get_text_config(decoder=True)
    modes = getattr(config, "kv_sharing_modes", None)
    if modes is None:  # before transformers told it of each layer
        return getattr(config, "num_kv_shared_layers", None) or 0
    stored = [i for i, mode in enumerate(modes) if not str(mode).startswith("reuse")]
    if len(stored) != stored[-1] + 1:
        raise ValueError(
            f"layer {stored[-1]} of this {config.model_type} stores keys and values, layers before it read those of "
            "others: only layers at the end may"
        )
    return len(modes) - len(stored)


def read_field(config: PreTrainedConfig, field: str) -> Any:
    """A field of a config, None if it has no such field; a list of every layer's value where layers may differ."""
    if field in (getattr(config, "per_layer_attributes", None) or ()):
        return [getattr(layer, field, None) for layer in config.per_layer_config]
    return getattr(config, field, None)
