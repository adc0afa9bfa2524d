"""Checkpoint folders as the hub has them, of every architecture in conf/model/, small and with random weights: sharded
safetensors, a generation config with several ends of text, a tokenizer with a chat template in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.random_model import save as save_random

TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
    "bos_token_id": 1,
    "eos_token_id": [2, 4],
    "pad_token_id": 0,
}
SLIDING = {"sliding_window": 64, "layer_types": ["sliding_attention", "full_attention"]}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-3.1-8b": ("llama", TEXT),
    "llama-3.1-8b-instruct": ("llama", TEXT),
    "mistral-7b-v0.3": ("mistral", {**TEXT, "sliding_window": None}),
    "mistral-7b-instruct-v0.3": ("mistral", {**TEXT, "sliding_window": None}),
    "qwen2.5-7b-instruct": ("qwen2", {k: v for k, v in TEXT.items() if k != "head_dim"}),
    "qwen2.5-32b-instruct": ("qwen2", {k: v for k, v in TEXT.items() if k != "head_dim"}),
    "qwen2.5-coder-0.5b-instruct": ("qwen2", {k: v for k, v in TEXT.items() if k != "head_dim"}),
    "smollm2-135m-instruct": ("llama", TEXT),
    "qwen3-8b": ("qwen3", TEXT),
    "gemma-3-4b-it": ("gemma3", {**TEXT, **SLIDING}),  # the checkpoint holds a vision tower, too
    "gemma-3-12b-it": ("gemma3", {**TEXT, **SLIDING}),
}
"""conf/model/NAME.yaml -> the architecture (model_type) of its checkpoint, and a small config of it."""


def save(name: str, folder: Path) -> Path:
    """Write the checkpoint and return its folder."""
    kind, options = FAMILIES[name]
    save_random(folder)  # for its tokenizer
    (folder / "model.safetensors").unlink()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {**options, "vocab_size": len(tokenizer)}
    if kind == "gemma3":
        options = {"text_config": options, "vision_config": VISION, "mm_tokens_per_image": 4}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=[2, 4], pad_token_id=0)
    model.save_pretrained(folder, max_shard_size="20KB")
    return folder
