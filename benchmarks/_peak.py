"""Peak memory of one prefill, in a process of its own: _peak.py MODEL TOKENS KIND [CHUNK] -> one line of JSON, bytes.

MODEL: `attention` has 8 layers with the attention of an 8B model (32 query and 8 KV heads of 128) in float32 and little
else, so that keys and values are what the memory holds; `layer` is one whole layer of an 8B model in bfloat16. KIND:
stock, everything, or a method of conf/method. CHUNK: tokens that are run at a time, all if it is left out.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from benchmarks._measure import LARGE
from benchmarks._methods import methods
from benchmarks._models import model_of
from lukv.allocation import Budget
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import compress
from lukv.selection import Eviction

SHARE = 0.2


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def attention_model() -> PreTrainedModel:
    config = AutoConfig.for_model(
        "llama",
        vocab_size=100,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=8,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=2**17,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config).eval()
    return model


@torch.no_grad()
def main(kind_of_model: str, tokens: int, kind: str, chunk: int | None = None) -> dict[str, int]:
    torch.set_num_threads(1)
    model: Any = attention_model() if kind_of_model == "attention" else model_of(LARGE, 1, torch.bfloat16)
    config = model.config
    ids = torch.randint(0, config.vocab_size, (1, tokens))
    eviction = None
    with tempfile.TemporaryDirectory() as folder:
        found = methods(Path(folder), config.num_hidden_layers, config.num_key_value_heads)
    if kind != "stock":
        use_ragged_attention(model)
        eviction = None if kind == "everything" else Eviction(*found[kind], Budget(share=SHARE))
        compress(model, ids[:, :128], eviction=eviction)
    else:
        model(ids[:, :128], past_key_values=DynamicCache(config=config))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    if kind == "stock":
        cache = DynamicCache(config=config)
        model(ids, past_key_values=cache, logits_to_keep=1)
        stored = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    else:
        ragged = compress(model, ids, eviction=eviction, chunk=chunk)
        stored = ragged.nbytes
    return {"peak": status("VmHWM") - before, "after": status("VmRSS") - before, "stored": stored, "before": before}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))))
