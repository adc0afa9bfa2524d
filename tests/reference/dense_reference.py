"""What the backend is checked against: one dense float64 forward per row, no cache, no padding, evicted keys at
-inf."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import eager_mask

from lukv.allocation import Budget, Uniform
from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import RaggedCache
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Eviction, Protection

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]
VOCABULARY = 97


Kept = dict[int, list[Tensor]]
"""Model layer -> for each KV head the positions that stayed."""


@dataclass
class Reference:
    """stages: (boundary, kept): tokens from the boundary on see of those before it only what was kept."""

    stages: list[tuple[int, Kept]] = field(default_factory=list)
    windows: list[int | None] = field(default_factory=list)


REFERENCE = Reference()


def dense(module, query, key, value, attention_mask, dropout=0.0, scaling=None, softcap=None, **kwargs):
    tokens, group = key.shape[2], query.shape[1] // key.shape[1]
    i, j = torch.arange(tokens)[:, None], torch.arange(tokens)
    visible = (j <= i).expand(query.shape[1], -1, -1).clone()
    window = REFERENCE.windows[module.layer_idx]
    if window is not None:
        visible &= j > i - window
    else:
        for boundary, stayed in REFERENCE.stages:
            for head, kept in enumerate(stayed[module.layer_idx]):
                gone = torch.ones(boundary, dtype=torch.bool)
                gone[kept[kept < boundary]] = False
                visible[head * group : (head + 1) * group, boundary:, :boundary] &= ~gone
    logits = query.double() @ key.double().repeat_interleave(group, 1).transpose(2, 3) * scaling
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    weights = logits.masked_fill(~visible, -math.inf).softmax(-1)
    out = weights @ value.double().repeat_interleave(group, 1)
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register("dense_reference", dense)


def eager(module, query, key, value, attention_mask, dropout=0.0, scaling=None, softcap=None, **kwargs):
    """transformers' eager attention under its own mask, but in the tensors' own precision (theirs rounds to
    float32)."""
    group = query.shape[1] // key.shape[1]
    logits = query @ key.repeat_interleave(group, 1).transpose(2, 3) * scaling
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    weights = (logits + attention_mask).softmax(-1)
    return (weights @ value.repeat_interleave(group, 1)).transpose(1, 2).contiguous(), None


AttentionInterface.register("eager_reference", eager)
AttentionMaskInterface.register("eager_reference", eager_mask)


def tiny_model(family: str, dtype: torch.dtype = torch.float64, layers: int = 4, **overrides) -> PreTrainedModel:
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 512,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
    }
    if family == "phi3":
        del options["head_dim"]
        options["hidden_size"] = 128
    if family in ("gemma2", "gemma3_text"):
        options |= {"sliding_window": 24, "query_pre_attn_scalar": 16}
        options["layer_types"] = ["sliding_attention", "full_attention"] * (layers // 2)
    if family == "gemma2":
        options["attn_logit_softcapping"] = 2.0
    if family == "mistral":
        options["sliding_window"] = None
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(options | overrides))).eval().double()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.15)  # far from uniform attention, so that an evicted key is missed
    use_ragged_attention(model)
    return model.to(dtype)


def rows(lengths: list[int], seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


@dataclass(frozen=True)
class Noise(Scorer):
    """Random scores, other ones in each layer and prompt."""

    name: str = "noise"

    def score(self, layer: PromptLayer) -> Tensor:
        generator = torch.Generator().manual_seed(layer.index * 7919 + layer.keys.shape[1])
        return torch.rand(layer.keys.shape[:2], generator=generator).to(layer.keys.device)


@dataclass(frozen=True)
class Uneven(Uniform):
    """The first heads keep more, the last little or nothing."""

    def counts(self, budget, layer):
        total = budget.entries(layer.tokens, layer.heads)
        counts = torch.zeros(layer.heads, dtype=torch.int64)
        for head in range(layer.heads):
            counts[head] = min(layer.tokens, total - int(counts.sum()), math.ceil(total * 0.7))
        return counts


def eviction(share: float, allocator=None, scorer: Scorer | None = None) -> Eviction:
    return Eviction(scorer or Noise(), allocator or Uneven(), Protection(), Budget(share=share))


def kept_by(cache: RaggedCache, row: int) -> Kept:
    """Where the entries that row `row` holds now stood."""
    return {index: cache.find_positions(layer, row) for layer, index in enumerate(cache.model_layers)}


def reference_logits(
    model: PreTrainedModel,
    cache: RaggedCache,
    row: int,
    prompt: list[int],
    after: list[int],
    stages: list[tuple[int, Kept]] | None = None,
) -> Tensor:
    """[len(after), vocabulary] float64: logits at each token after the prompt, given what `cache` kept of it (or
    `stages`)."""
    REFERENCE.windows = [layer.window for layer in cache.layers]
    REFERENCE.stages = [(len(prompt), kept_by(cache, row))] if stages is None else stages
    model.set_attn_implementation("dense_reference")
    try:
        with torch.no_grad():
            return model(torch.tensor([prompt + after])).logits[0, len(prompt) :].double()
    finally:
        use_ragged_attention(model)
