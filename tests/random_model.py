"""A model folder with random weights: Qwen2, two layers, a tokenizer of single characters with a chat template.

The weights are large: as they usually start, every question has the same answer, and no test could tell a wrong cache.
"""

from __future__ import annotations

import string
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

SHARPNESS = 50
"""Attention then picks single tokens, and each context and question is answered in its own way."""


def save(folder: Path, seed: int = 0, positions: int = 4096) -> Path:
    """Write it and return the folder."""
    special = ["<|unknown|>", "<|begin|>", "<|end|>", "<|user|>", "<|assistant|>"]
    vocabulary = {token: i for i, token in enumerate([*special, *string.printable])}
    characters = Tokenizer(models.WordLevel(vocabulary, unk_token=special[0]))
    characters.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    characters.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=characters,
        unk_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        extra_special_tokens=special[3:],
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = Qwen2ForCausalLM(config)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.data *= SHARPNESS
    model.lm_head.weight.data[config.eos_token_id] *= 2  # answers then end sooner or later, after some 25 tokens
    model.save_pretrained(folder)
    return folder
