"""kvpress's side of a benchmark, run by its own Python (see _kvpress.py): prints one line of JSON at the end.

attention QUERY_HEADS KV_HEADS HEAD_DIM TOKENS SHARE...   seconds of one token's attention, by share, and "full"
model GEOMETRY LAYERS TOKENS STEPS SHARE                  by method: seconds to the first token and of a further one
bridge GEOMETRY LAYERS TOKENS STEPS SHARE                 by method, and "METHOD, packed" through lukv.bridges.kvpress:
                                                          the same, and bytes of the cache after the prompt
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
from benchmarks._models import ids_of, model_of, twin


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


def make_network(geometry: str, layers: str):
    shape = {"tiny": TINY, "8B": LARGE}[geometry]
    return shape, model_of(shape, int(layers), DTYPE if shape is TINY else torch.bfloat16)


def model(geometry: str, layers: str, tokens: str, steps: str, share: str) -> dict[str, dict[str, float]]:
    shape, network = make_network(geometry, layers)
    return decode_masked(network, ids_of(int(tokens)), presses(int(layers), shape.kv_heads, float(share)), int(steps))


def decode_masked(network, ids: torch.Tensor, by_name: dict, steps: int) -> dict[str, dict[str, float]]:
    """kvpress's own decoding without a press ("full") and after each of these."""
    result: dict[str, dict[str, float]] = {}
    caches = {}
    modules = [layer.self_attn for layer in network.model.layers]
    masked = {}
    for name, press in {"full": None, **by_name}.items():
        for prompt in (ids[:, :64], ids):  # the short one warms up
            caches[name] = DynamicCache(config=network.config)
            for module in modules:
                module.masked_key_indices = None
            begin = time.process_time()
            with press(network) if press else nullcontext():
                network(prompt, past_key_values=caches[name], logits_to_keep=1)
            result[name] = {"first": time.process_time() - begin}
        result[name]["bytes"] = sum(layer.keys.nbytes + layer.values.nbytes for layer in caches[name].layers)
        masked[name] = [getattr(module, "masked_key_indices", None) for module in modules]

    def step(name: str):
        def call(i: int) -> None:
            for module, indices in zip(modules, masked[name], strict=True):
                module.masked_key_indices = indices
            network(ids[:, :1], past_key_values=caches[name], logits_to_keep=1)

        return call

    for name, seconds in in_turn({name: step(name) for name in caches}, steps).items():
        result[name]["token"] = seconds
    return result


def bridge(geometry: str, layers: str, tokens: str, steps: str, share: str) -> dict[str, dict[str, float]]:
    from lukv.backend.generate import append
    from lukv.bridges.kvpress import compress

    shape, network = make_network(geometry, layers)
    ids, ours = ids_of(int(tokens)), twin(network)
    by_name = presses(int(layers), shape.kv_heads, float(share))
    by_name["Knorm"] = kvpress.KnormPress(compression_ratio=1 - float(share))
    result, caches = decode_masked(network, ids, by_name, int(steps)), {}
    for name, press in by_name.items():
        for prompt in (ids[:, :64], ids):  # the short one warms up
            begin = time.process_time()
            cache = compress(ours, prompt, press)
            first = time.process_time() - begin
        result[f"{name}, packed"] = {"first": first, "bytes": cache.nbytes}
        cache.reserve(256)
        caches[f"{name}, packed"] = cache
    calls = {name: lambda i, cache=cache: append(ours, cache, ids[:, :1]) for name, cache in caches.items()}
    for name, seconds in in_turn(calls, int(steps)).items():
        result[name]["token"] = seconds
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.no_grad():
        print(json.dumps({"attention": attention, "model": model, "bridge": bridge}[sys.argv[1]](*sys.argv[2:])))
