"""Small random models of several families, loaded the way the system loads them."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lukv.backend.attention import use_ragged_attention
from lukv.backend.config import hash_config
from lukv.model import LoadedModel

VOCABULARY = 61


def small_model(family: str, kv_heads: int = 2, **changes) -> LoadedModel:
    """Three layers of six query heads of 16, float64, weights so large that attention is sharp."""
    options = {
        "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 3,
        "num_attention_heads": 6, "num_key_value_heads": kv_heads, "head_dim": 16, "max_position_embeddings": 4096,
        "eos_token_id": None, "bos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    if family == "gemma2":
        options |= {"attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 16, "layer_types": ["full_attention"] * 3}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(options | changes))).eval().double()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.3)
    use_ragged_attention(model)
    tokenizer = SimpleNamespace(eos_token_id=None)
    return LoadedModel(model, tokenizer, family, family, hash_config(model.config))  # type: ignore[arg-type]


def text(seed: int, length: int) -> list[int]:
    return torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
