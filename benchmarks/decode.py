"""What a decoded token costs: attention per layer, and the whole model, against the full cache.

    python benchmarks/decode.py [--quick] [--kvpress PYTHON]

On a GPU if there is one (bf16, every kernel that runs there, errors against the loop in float32), else on one CPU
thread. Every row's variants are measured in turn, many rounds, and the smallest time counts; the data of a row is
larger than the caches, so each call reads memory. `--kvpress` also runs kvpress's AdaKV in its own process (PYTHON has
it installed).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AutoConfig, AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel

from lukv.allocation import Budget, Uniform
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import compress
from lukv.backend.kernels import names, pick
from lukv.backend.selection import Eviction, Protection
from lukv.scoring import PromptLayer, Scorer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
WORKING_SET = 2**29 if DEVICE.type == "cuda" else 2**28  # bytes to rotate over, more than any cache holds
SHARE = 0.2


@dataclass(frozen=True)
class Geometry:
    name: str
    query_heads: int
    kv_heads: int
    head_dim: int


TINY, LARGE = Geometry("tiny 8/4 x 32", 8, 4, 32), Geometry("8B 32/8 x 128", 32, 8, 128)


def uneven(heads: int, tokens: int, share: float) -> np.ndarray:
    """Head budgets as uneven as measured ones: from 0.25 to 1.75 of the mean."""
    return (np.linspace(0.25, 1.75, heads) * share * tokens).astype(np.int64)


@dataclass(frozen=True)
class Variant:
    """call(i) does `steps` of what is timed; i is the number of the round."""

    call: Callable[[int], object]
    steps: int = 1


def smallest(variants: dict[str, Variant], rounds: int) -> dict[str, float]:
    """Seconds of one step of each variant: the best of `rounds`, taken in turn."""
    best = dict.fromkeys(variants, float("inf"))
    for i in range(rounds):
        for name, variant in variants.items():
            best[name] = min(best[name], seconds(lambda call=variant.call, i=i: call(i)) / variant.steps)
    return best


def rotating(call: Callable[[int], object], copies: int) -> Variant:
    """call(i) works on copy i of the data. On a GPU all copies in one CUDA graph: the kernels' time, without
    Python's."""
    if DEVICE.type == "cpu":
        return Variant(call)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call(0)
        call(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            call(i)
    return Variant(lambda i: graph.replay(), copies)


def seconds(call: Callable[[], object]) -> float:
    if DEVICE.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3
    begin_s = time.process_time()  # one thread computes: what other jobs take of the machine does not count
    call()
    return time.process_time() - begin_s


def bandwidth() -> float:
    """Bytes a second that a plain read of memory gets here (two reads for the floor: keys and values)."""
    x = torch.ones(WORKING_SET // 4, device=DEVICE, dtype=torch.float32)
    y = torch.empty_like(x)
    factor = 2 if DEVICE.type == "cuda" else 1  # a copy reads and writes; a sum only reads
    call = (lambda: y.copy_(x)) if DEVICE.type == "cuda" else x.sum
    return factor * x.nbytes / min(seconds(call) for _ in range(10))


def attention_rows(geometry: Geometry, tokens: int, rounds: int, speed: float) -> list[str]:
    heads, d = geometry.kv_heads, geometry.head_dim
    group = geometry.query_heads // heads
    lengths = uneven(heads, tokens, SHARE)
    capacity = lengths + 64
    start = torch.tensor(np.cumsum(capacity) - capacity, dtype=torch.int32, device=DEVICE)
    length = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    longest, scale = int(lengths.max()), d**-0.5

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=DEVICE, dtype=DTYPE)

    copies = max(2, min(64, WORKING_SET // (2 * int(capacity.sum()) * d * DTYPE.itemsize)))
    full_copies = max(2, min(16, WORKING_SET // (2 * heads * tokens * d * DTYPE.itemsize)))
    query = random(heads, group, 1, d)
    arenas = [(random(int(capacity.sum()), d), random(int(capacity.sum()), d)) for _ in range(copies)]
    fulls = [(random(1, heads, tokens, d), random(1, heads, tokens, d)) for _ in range(full_copies)]
    cut = [(k[:, :, :longest].contiguous(), v[:, :, :longest].contiguous()) for k, v in fulls]
    bias = torch.arange(longest, device=DEVICE)[None, None, None] < length[None, :, None, None]
    flat, grouped = query.view(1, -1, 1, d), query.view(1, heads, group, d)

    def full(i: int) -> Tensor:
        return sdpa(flat, *fulls[i % full_copies], scale=scale, enable_gqa=True)

    def full_grouped(i: int) -> Tensor:
        return sdpa(grouped, *fulls[i % full_copies], scale=scale)

    def padded(i: int) -> Tensor:
        return sdpa(grouped, *cut[i % full_copies], attn_mask=bias, scale=scale)

    variants = {
        "full": rotating(full, full_copies),
        "full grouped": rotating(full_grouped, full_copies),
        "padded + mask": rotating(padded, full_copies),
    }
    errors = {}
    exact = pick("loop", DEVICE, torch.float32, d, d)[1]
    wanted = exact(query.float(), *(x.float() for x in arenas[0]), start, length, longest, scale, None)
    for name in names():
        try:
            _, decode = pick(name, DEVICE, DTYPE, d, d)
        except ValueError:
            continue
        if name == "reference":
            continue

        def ragged(i: int, decode=decode) -> Tensor:
            return decode(query, *arenas[i % copies], start, length, longest, scale, None)

        errors[name] = float((ragged(0).float() - wanted).abs().max())
        # the loop asks the device for the lengths, which no graph can hold
        variants[name] = Variant(ragged) if name == "loop" else rotating(ragged, copies)
    times = smallest(variants, rounds)
    times["floor"] = 2 * int(lengths.sum()) * d * DTYPE.itemsize / speed
    table = []
    for name, t in times.items():
        against = f"{t / times['full']:.3f} | {t / times['full grouped']:.2f} | {t / times['floor']:.1f}"
        error = f"{errors[name]:.0e}" if name in errors else ""
        table.append(f"| {geometry.name} | {tokens} | {name} | {t * 1e3:.3f} | {against} | {error} |")
    return table


@dataclass(frozen=True)
class Recency(Scorer):
    name: str = "recency"

    def score(self, layer: PromptLayer) -> Tensor:
        return torch.arange(layer.keys.shape[1], device=layer.keys.device).float().expand(layer.keys.shape[:2])


@dataclass(frozen=True)
class Uneven(Uniform):
    def counts(self, budget, layer):
        return torch.from_numpy(uneven(layer.heads, layer.tokens, float(budget.share or 1)))


def model_of(geometry: Geometry, layers: int) -> PreTrainedModel:
    width = geometry.query_heads * geometry.head_dim // (2 if geometry is TINY else 1)
    config = AutoConfig.for_model(
        "qwen2",
        vocab_size=2000,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=geometry.query_heads,
        num_key_value_heads=geometry.kv_heads,
        head_dim=geometry.head_dim,
        max_position_embeddings=65536,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().to(DEVICE, DTYPE)


@torch.no_grad()
def model_rows(geometry: Geometry, layers: int, tokens: int, steps: int) -> list[str]:
    """Time of one decoded token of the whole model, each variant in turn."""
    stock, ours = model_of(geometry, layers), model_of(geometry, layers)
    use_ragged_attention(ours)
    ids = torch.randint(0, 2000, (1, tokens), device=DEVICE)
    full = DynamicCache(config=stock.config)
    stock(ids, past_key_values=full, logits_to_keep=1)
    everything = compress(ours, ids)
    kept = everything.evicted(Eviction(Recency(), Uneven(), Protection(), Budget(share=SHARE)))

    def step(model: PreTrainedModel, cache: Cache) -> Variant:
        return Variant(lambda i: model(ids[:, :1], past_key_values=cache))

    variants = {
        "stock, full cache": step(stock, full),
        "ours, everything kept": step(ours, everything),
        f"ours, {SHARE:.0%} kept": step(ours, kept),
    }
    times = smallest(variants, steps)
    table = []
    for name, t in times.items():
        size = (kept if "kept" in name and "everything" not in name else everything).nbytes / 2**20
        what = f"{geometry.name}, {layers} layers | {tokens} | {name}"
        table.append(f"| {what} | {t * 1e3:.2f} | {t / times['stock, full cache']:.2f} | {size:.2f} |")
    return table


def kvpress_rows(python: str, tokens: int, steps: int) -> list[str]:
    program = Path(__file__).with_name("decode_kvpress.py")
    command = [python, str(program), str(tokens), str(steps), str(SHARE)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    times = json.loads(out.splitlines()[-1])
    what, base = f"{TINY.name}, 4 layers (own process) | {tokens}", times["stock, full cache"]
    return [f"| {what} | {name} | {t * 1e3:.2f} | {t / base:.2f} | |" for name, t in times.items()]


def head(*columns: str) -> None:
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--quick", action="store_true", help="fewer lengths and rounds")
    parser.add_argument("--kvpress", metavar="PYTHON", help="a Python with kvpress, to compare with")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    speed = bandwidth()
    where = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU, 1 thread"
    print(f"{where}, {DTYPE}, torch {torch.__version__}, {speed / 1e9:.1f} GB/s read from memory\n")
    print(f"Attention of one new token per layer, {SHARE:.0%} of the cache kept, heads 0.25 to 1.75 of the mean:\n")
    head("geometry", "context", "variant", "ms", "of full", "of full grouped", "of floor", "largest error")
    lengths = (4096, 16384) if options.quick else (1024, 4096, 16384, 32768)
    if DEVICE.type == "cuda" and not options.quick:
        lengths = (8192, 32768, 131072)
    for geometry in (TINY, LARGE):
        for tokens in lengths:
            print("\n".join(attention_rows(geometry, tokens, 10 if options.quick else 40, speed)), flush=True)
    print("\nOne decoded token of the whole model:\n")
    head("model", "context", "variant", "ms per token", "of stock", "MiB of cache")
    for tokens in (4096,) if options.quick else (1024, 4096, 16384):
        print("\n".join(model_rows(TINY, 4, tokens, 40 if options.quick else 200)), flush=True)
    if options.kvpress:
        print("\n".join(kvpress_rows(options.kvpress, 4096, 40 if options.quick else 200)), flush=True)


if __name__ == "__main__":
    main()
