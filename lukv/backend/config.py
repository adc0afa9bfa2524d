"""What the backend needs to know of a transformers config."""

from __future__ import annotations

import hashlib
import json

import torch
from transformers import PreTrainedConfig, PreTrainedModel

KINDS = {"full_attention", "sliding_attention"}
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
    fields = {field: getattr(text, field, None) for field in GEOMETRY}
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
    """The sliding window of each layer, None for full attention. Raises ValueError for a model that this backend cannot
    run, because it has other kinds of layers or no layer with full attention (then there is nothing to evict)."""
    config = config.get_text_config(decoder=True)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # mistral, phi3: one window for all layers; one that no position can leave is none
        wide = window is None or window >= config.max_position_embeddings
        kinds = ["full_attention" if wide else "sliding_attention"] * config.num_hidden_layers
    if other := sorted(set(kinds) - KINDS):
        raise ValueError(
            f"{config.model_type} has {', '.join(other)} layers; only full and sliding attention are supported"
        )
    if "full_attention" not in kinds:
        raise ValueError(f"every layer of this {config.model_type} has a sliding window of {window}: nothing to evict")
    return [window if kind == "sliding_attention" else None for kind in kinds]


def find_rope_switch(config: PreTrainedConfig) -> int | None:
    """The length at which a model changes its rotary factors ("longrope", as in Phi-3), None if there is none. Keys of
    a shorter input do not fit those of a longer one."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return None
    return rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
