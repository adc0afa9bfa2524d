"""kvpress's AdaKV on the model of decode.py, against the stock cache in the same process: what decode.py --kvpress
runs."""

from __future__ import annotations

import json
import sys
import time

import torch
from kvpress import AdaKVPress, KnormPress
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache


@torch.no_grad()
def main(tokens: int, steps: int, share: float) -> None:
    torch.set_num_threads(1)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=2000,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=65536,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    stock = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    pressed = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    ids = torch.randint(0, 2000, (1, tokens))
    full, kept = DynamicCache(config=config), DynamicCache(config=config)
    stock(ids, past_key_values=full, logits_to_keep=1)
    with AdaKVPress(KnormPress(compression_ratio=1 - share))(pressed):
        pressed(ids, past_key_values=kept, logits_to_keep=1)
    best = {"stock, full cache": float("inf"), "kvpress AdaKV": float("inf")}
    for _ in range(steps):
        for name, model, cache in (("stock, full cache", stock, full), ("kvpress AdaKV", pressed, kept)):
            begin = time.process_time()
            model(ids[:, :1], past_key_values=cache)
            best[name] = min(best[name], time.process_time() - begin)
    print(json.dumps(best))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
