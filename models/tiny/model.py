"""The architecture, and its initialisation: some heads begin as previous-token heads.

A Llama with attention biases is Qwen2's network; the output biases, which Qwen2 has not, stay zero. (As model type
qwen2, AutoTokenizer of transformers 5.23 would put Qwen's own pre-tokenizer in the place of ours.)

If the keys' bias is c on the fastest rotary frequencies and the queries' bias the same vector turned back by `offset`
positions, the attention score of bias with bias is

    sum over frequencies f of c^2 cos(f (distance - offset)),

largest at distance = offset: the head attends `offset` tokens back, whatever the text. Retrieval then has to be learnt,
but its first ingredient has not. These heads are not frozen: training moves them like any other weight.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

OFFSETS: dict[tuple[int, int], tuple[int, int]] = {
    (0, 0): (1, 2), (0, 1): (1, 3), (0, 2): (5, 7),  # a key stands two tokens before its value, a name five to seven
    (1, 0): (1, 3), (2, 0): (1, 3), (3, 0): (1, 3),
}  # fmt: skip
"""(layer, KV head) -> where the two query heads of that KV head look at first. One such head in every layer."""

STRENGTH, FREQUENCIES = 5.4, 6


def config(vocab_size: int, bos: int, eos: int, pad: int, layers: int = 4) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
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
    for (layer, kv_head), offsets in OFFSETS.items():
        if layer < settings.num_hidden_layers:
            _look_back(model.model.layers[layer].self_attn, settings, kv_head, offsets)
    return model


@torch.no_grad()
def _look_back(attention: nn.Module, settings: LlamaConfig, kv_head: int, offsets: tuple[int, ...]) -> None:
    """Makes the query heads of `kv_head` attend `offsets` tokens back (in turn) and weakens what they read."""
    size, group = 32, settings.num_attention_heads // settings.num_key_value_heads
    half, fast = size // 2, slice(0, FREQUENCIES)
    angles = 10_000.0 ** (-torch.arange(half) / half)[fast]
    keys = slice(kv_head * size, (kv_head + 1) * size)
    bias = torch.zeros(size)
    bias[fast] = STRENGTH
    attention.k_proj.bias[keys] = bias
    attention.k_proj.weight[keys] *= 0.1
    for index in range(group):
        offset = offsets[index % len(offsets)]
        queries = slice((kv_head * group + index) * size, (kv_head * group + index + 1) * size)
        bias = torch.zeros(size)
        bias[fast] = STRENGTH * torch.cos(angles * offset)
        bias[half : half + FREQUENCIES] = -STRENGTH * torch.sin(angles * offset)
        attention.q_proj.bias[queries] = bias
        attention.q_proj.weight[queries] *= 0.1
