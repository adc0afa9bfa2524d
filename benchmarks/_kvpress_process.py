"""kvpress's side of a benchmark, run by its own Python (see _kvpress.py): prints one line of JSON at the end.

attention QUERY_HEADS KV_HEADS HEAD_DIM TOKENS SHARE...   seconds of one token's attention, by share, and "full"
model GEOMETRY LAYERS TOKENS STEPS SHARE                  by method: seconds to the first token and of a further one
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import kvpress
import torch
from kvpress.attention_patch import attention_patch
from transformers import DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from benchmarks._measure import DTYPE, LARGE, TINY, WORKING_SET, in_turn, uneven
from benchmarks._models import ids_of, model_of


def attention(query_heads: str, kv_heads: str, head_dim: str, tokens: str, *shares: str) -> dict[str, float]:
    h, heads, d, n = int(query_heads), int(kv_heads), int(head_dim), int(tokens)
    many = max(2, min(64, WORKING_SET // (2 * heads * n * d * DTYPE.itemsize)))
    query = torch.randn(1, h, 1, d, dtype=DTYPE)
    data = [tuple(torch.randn(1, heads, n, d, dtype=DTYPE) for _ in range(2)) for _ in range(many)]
    plain = getattr(sdpa_attention_forward, "__wrapped__", sdpa_attention_forward)
    patched = attention_patch(plain)

    def call(function, masked):
        module = SimpleNamespace(num_key_value_groups=h // heads, is_causal=True, masked_key_indices=masked)
        return lambda i: function(module, query, *data[i % many], None, dropout=0.0, scaling=d**-0.5, is_causal=False)

    calls = {"full": call(plain, None)}
    for share in shares:
        gone = [torch.randperm(n)[: n - int(kept)] for kept in uneven(heads, n, float(share))]
        head = torch.cat([torch.full((len(rows),), i) for i, rows in enumerate(gone)])
        calls[share] = call(patched, (torch.zeros_like(head), head, torch.cat(gone)))
    return in_turn(calls, 10 if n > 4096 else 30)


def presses(layers: int, heads: int, share: float) -> dict[str, kvpress.BasePress]:
    lukv = kvpress.presses.lukv_press.LUKVPress(kvpress.KnormPress(), compression_ratio=1 - share)
    grid = torch.linspace(1.75, 0.25, heads).expand(layers, heads) * torch.arange(0.99, 0, -0.01)[:, None, None]
    lukv._budget_curves = 1 - grid.clamp(max=1).double().numpy()  # in the place of its download: pruned shares
    return {"AdaKV": kvpress.AdaKVPress(kvpress.KnormPress(compression_ratio=1 - share)), "LUKVPress": lukv}


def model(geometry: str, layers: str, tokens: str, steps: str, share: str) -> dict[str, dict[str, float]]:
    shape = {"tiny": TINY, "8B": LARGE}[geometry]
    network = model_of(shape, int(layers), DTYPE if shape is TINY else torch.bfloat16)
    ids = ids_of(int(tokens))
    result: dict[str, dict[str, float]] = {}
    caches = {}
    modules = [layer.self_attn for layer in network.model.layers]
    masked = {}
    for name, press in {"full": None, **presses(int(layers), shape.kv_heads, float(share))}.items():
        for prompt in (ids[:, :64], ids):  # the short one warms up
            caches[name] = DynamicCache(config=network.config)
            for module in modules:
                module.masked_key_indices = None
            begin = time.process_time()
            with press(network) if press else nullcontext():
                network(prompt, past_key_values=caches[name], logits_to_keep=1)
            result[name] = {"first": time.process_time() - begin}
        masked[name] = [getattr(module, "masked_key_indices", None) for module in modules]

    def step(name: str):
        def call(i: int) -> None:
            for module, indices in zip(modules, masked[name], strict=True):
                module.masked_key_indices = indices
            network(ids[:, :1], past_key_values=caches[name], logits_to_keep=1)

        return call

    for name, seconds in in_turn({name: step(name) for name in caches}, int(steps)).items():
        result[name]["token"] = seconds
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        print(json.dumps({"attention": attention, "model": model}[sys.argv[1]](*sys.argv[2:])))
