"""Models of random weights in the geometries measured. Imported by kvpress's process too: no lukv in here."""

from __future__ import annotations

from copy import deepcopy

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from benchmarks._measure import DEVICE, TINY, Geometry

VOCABULARY = 2000  # small on purpose: an output layer of 128k words would be a third of the time of two layers


def model_of(geometry: Geometry, layers: int, dtype: torch.dtype) -> PreTrainedModel:
    """A Llama of that geometry under stock transformers (SDPA), the same weights in every process."""
    small = geometry is TINY
    config = AutoConfig.for_model(
        "llama",
        vocab_size=VOCABULARY,
        hidden_size=128 if small else 4096,
        intermediate_size=384 if small else 14336,
        num_hidden_layers=layers,
        num_attention_heads=geometry.query_heads,
        num_key_value_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        max_position_embeddings=2**18,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model = model.to_empty(device=DEVICE).eval()
    model.model.rotary_emb = type(model.model.rotary_emb)(config).to(DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for weight in model.parameters():
        weight.data.normal_(0, 0.02, generator=generator) if weight.ndim == 2 else weight.data.fill_(1)
    return model


def twin(model: PreTrainedModel) -> PreTrainedModel:
    """Another model with the same weights in the same memory."""
    config = deepcopy(model.config)  # it holds the attention's name
    with torch.device("meta"):
        other = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation="sdpa")
    other.load_state_dict(model.state_dict(), assign=True)
    other.model.rotary_emb = type(other.model.rotary_emb)(config).to(model.device)
    return other.eval()


def ids_of(tokens: int, batch: int = 1) -> torch.Tensor:
    """[batch, tokens] int64, the same in every process."""
    return torch.randint(0, VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(1)).to(DEVICE)
