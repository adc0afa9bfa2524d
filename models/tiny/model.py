"""The architecture, and its initialisation: some heads begin as previous-token heads.

A Llama with attention biases is Qwen2's network; the output biases, which Qwen2 lacks, stay zero. The model type is not
qwen2, because AutoTokenizer of transformers 5.23 would then replace our pre-tokenizer by Qwen's.

Let the keys' bias be c on the fastest rotary frequencies, and the queries' bias the same vector rotated back by
`offset` positions. Then the attention score of bias with bias is

    sum over frequencies f of c^2 cos(f (distance - offset))

It is largest at distance = offset: the head attends `offset` tokens back, whatever the text. Retrieval still has to be
learnt, but not its first ingredient. These heads are not frozen: training moves them like any other weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

FIRST_LAYER: dict[int, tuple[int, ...]] = {0: (1, 2), 1: (1, 3), 2: (5, 7)}
LATER_LAYERS: dict[int, tuple[int, ...]] = {0: (1, 3)}
"""By KV head: how many tokens its query heads attend back, in turn. A key stands two tokens before its value, a name
five to seven. One such head in every later layer makes heads differ within layers."""

PEAK = 30.93
"""Attention logit of bias with bias at the offset."""
FAST = 3 / 8
"""Share of the rotary frequencies, the fastest, that carry the bias."""


def look_back_heads(layers: int) -> dict[tuple[int, int], tuple[int, ...]]:
    """The offsets of a KV head's query heads, in turn, by (layer, KV head)."""
    later = {(layer, head): offsets for layer in range(1, layers) for head, offsets in LATER_LAYERS.items()}
    return {(0, head): offsets for head, offsets in FIRST_LAYER.items()} | later


def config(vocab_size: int, bos: int, eos: int, pad: int, **shape: Any) -> LlamaConfig:
    """shape: hidden_size, num_hidden_layers and so on, as LlamaConfig calls them (train.yaml's `model`)."""
    return LlamaConfig(
        **shape,
        vocab_size=vocab_size,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        attention_bias=True,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def initialise(settings: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """Float32 weights, drawn from `seed`."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(settings)
    for name, weight in model.named_parameters():
        if "embed" in name:
            nn.init.normal_(weight, std=0.05)
        elif weight.dim() == 2:
            into_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            nn.init.normal_(weight, std=(0.5 if into_residual else 1.0) / math.sqrt(weight.shape[1]))
        elif name.endswith("o_proj.bias"):
            nn.init.zeros_(weight).requires_grad_(False)
        elif name.endswith("bias"):
            nn.init.normal_(weight, std=0.0 if "v_proj" in name else 0.5)
    for (layer, kv_head), offsets in look_back_heads(settings.num_hidden_layers).items():
        _look_back(model.model.layers[layer].self_attn, settings, kv_head, offsets)
    return model


@torch.no_grad()
def _look_back(attention: nn.Module, settings: LlamaConfig, kv_head: int, offsets: tuple[int, ...]) -> None:
    """Make the query heads of `kv_head` attend `offsets` tokens back, in turn, and weaken the influence of the text."""
    size, group = settings.head_dim, settings.num_attention_heads // settings.num_key_value_heads
    half = size // 2
    count = round(FAST * half)
    strength = math.sqrt(PEAK * math.sqrt(size) / count)
    angles = settings.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)[:count]
    keys = slice(kv_head * size, (kv_head + 1) * size)
    bias = torch.zeros(size)
    bias[:count] = strength
    attention.k_proj.bias[keys] = bias
    attention.k_proj.weight[keys] *= 0.1
    for index in range(group):
        offset = offsets[index % len(offsets)]
        queries = slice((kv_head * group + index) * size, (kv_head * group + index + 1) * size)
        bias = torch.zeros(size)
        bias[:count] = strength * torch.cos(angles * offset)
        bias[half : half + count] = -strength * torch.sin(angles * offset)
        attention.q_proj.bias[queries] = bias
        attention.q_proj.weight[queries] *= 0.1
