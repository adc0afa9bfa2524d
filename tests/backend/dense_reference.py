"""What the backend is checked against: one dense float64 forward per row, no cache, no padding, evicted keys at
-inf."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import AttentionInterface, AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lukv.allocation import Budget, Uniform
from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import RaggedCache
from lukv.backend.selection import Eviction, Protection
from lukv.scoring import PromptLayer, Scorer

FAMILIES = ["llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3"]
VOCABULARY = 97


@dataclass
class Reference:
    """kept: for each layer the positions each KV head keeps of the `prompt` first tokens; None: all of them."""

    prompt: int = 0
    kept: dict[int, list[Tensor]] = field(default_factory=dict)
    windows: list[int | None] = field(default_factory=list)


REFERENCE = Reference()


def dense(module, query, key, value, attention_mask, dropout=0.0, scaling=None, softcap=None, **kwargs):
    tokens, group = key.shape[2], query.shape[1] // key.shape[1]
    i, j = torch.arange(tokens)[:, None], torch.arange(tokens)
    visible = (j <= i).expand(query.shape[1], -1, -1).clone()
    window = REFERENCE.windows[module.layer_idx]
    if window is not None:
        visible &= j > i - window
    elif module.layer_idx in REFERENCE.kept:
        for head, kept in enumerate(REFERENCE.kept[module.layer_idx]):
            gone = torch.ones(REFERENCE.prompt, dtype=torch.bool)
            gone[kept] = False
            visible[head * group : (head + 1) * group, REFERENCE.prompt :, : REFERENCE.prompt] &= ~gone
    logits = query.double() @ key.double().repeat_interleave(group, 1).transpose(2, 3) * scaling
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    weights = logits.masked_fill(~visible, -math.inf).softmax(-1)
    out = weights @ value.double().repeat_interleave(group, 1)
    return out.to(query.dtype).transpose(1, 2).contiguous(), None


AttentionInterface.register("dense_reference", dense)


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
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(options | overrides))).eval().to(dtype)
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.15)  # far from uniform attention, so that an evicted key is missed
    use_ragged_attention(model)
    return model


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


def reference_logits(
    model: PreTrainedModel, cache: RaggedCache, row: int, prompt: list[int], after: list[int]
) -> Tensor:
    """[len(after), vocabulary] float64: logits at each token after the prompt, given what `cache` kept of it."""
    layers = cache.evictable
    REFERENCE.prompt = len(prompt)
    REFERENCE.windows = [layer.window for layer in cache.layers]
    REFERENCE.kept = {}
    for index, layer in zip(cache.model_layers, layers, strict=True):
        heads = layer.arena.heads
        REFERENCE.kept[index] = [kept_positions(layer, row * heads + head, len(prompt)) for head in range(heads)]
    model.set_attn_implementation("dense_reference")
    try:
        with torch.no_grad():
            return model(torch.tensor([prompt + after])).logits[0, len(prompt) :].double()
    finally:
        use_ragged_attention(model)


def kept_positions(layer, sequence: int, prompt: int) -> Tensor:
    positions = layer.positions_of(sequence)
    return positions[positions < prompt]
