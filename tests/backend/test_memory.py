"""At most one layer's full keys and values are alive during prefill, and only what is kept afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref

import pytest

from lukv.backend.generate import compress
from lukv.backend.layer import RaggedLayer
from tests.reference.dense_reference import eviction, rows, tiny_model


def test_the_last_layers_keys_are_gone_when_the_next_layer_attends(monkeypatch):
    alive: list[weakref.ref] = []
    attend = RaggedLayer.attend

    def watch(self, query, key, value, *rest):
        assert not [ref for ref in alive if ref() is not None]
        alive.extend((weakref.ref(key), weakref.ref(value)))
        return attend(self, query, key, value, *rest)

    monkeypatch.setattr(RaggedLayer, "attend", watch)
    compress(tiny_model("llama"), rows([64, 64]), eviction=eviction(0.2))
    assert len(alive) == 8
    assert not [ref for ref in alive if ref() is not None]


PROGRAM = """
import json, sys, threading, time, torch
from pathlib import Path
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache
from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import RaggedCache
from tests.reference.dense_reference import eviction

torch.set_num_threads(1)
config = AutoConfig.for_model("llama", vocab_size=100, hidden_size=64, intermediate_size=64, num_hidden_layers=8,
    num_attention_heads=32, num_key_value_heads=32, head_dim=128, max_position_embeddings=65536)
model = AutoModelForCausalLM.from_config(config).eval()
use_ragged_attention(model)
ids = torch.randint(0, 100, (1, int(sys.argv[1])))

def rss():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def watch():
    global peak
    while watching:
        peak = max(peak, rss())
        time.sleep(0.005)

result = {}
with torch.no_grad():
    model(ids[:, :64])
    for kind in ("ragged", "stock"):
        base = peak = rss()
        watching = True
        thread = threading.Thread(target=watch)
        thread.start()
        cache = RaggedCache(model, eviction(0.2)) if kind == "ragged" else DynamicCache(config=config)
        model(ids, past_key_values=cache, logits_to_keep=1)
        watching = False
        thread.join()
        result[kind] = {"peak": peak - base, "after": rss() - base}
        del cache
print(json.dumps(result))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_of_the_process_against_the_stock_cache():
    """8 layers of 32 x 128, 512 tokens: 16 MiB of keys and values a layer, 128 MiB in all."""
    layer, tokens = 2 * 32 * 128 * 4 * 512, 512
    # glibc would keep freed blocks of up to 32 MiB for itself; with this it gives them back, and RSS means something
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    command = [sys.executable, "-c", PROGRAM, str(tokens)]
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    result = json.loads(out.splitlines()[-1])
    ours, stock = result["ragged"], result["stock"]
    print(
        *(
            f"{kind}: " + ", ".join(f"{k} {v / 2**20:.0f} MiB" for k, v in sizes.items())
            for kind, sizes in result.items()
        )
    )
    assert stock["peak"] - ours["peak"] >= 0.5 * 8 * layer
    assert ours["after"] <= 0.45 * stock["after"]
