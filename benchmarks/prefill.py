"""What eviction adds to a prefill: time of its parts, method by method, and the process's peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks._measure import LARGE, in_turn, seconds
from benchmarks._methods import methods
from benchmarks._models import ids_of, model_of
from benchmarks._section import ROOT, Section, run
from lukv.allocation import Allocator, Budget
from lukv.backend.arena import pack
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import compress
from lukv.backend.rope import make_rope
from lukv.scoring import PromptLayer, Rope, Scorer
from lukv.selection import Protection, make_head_scores, protect, select_best

SHARE = 0.2
CHUNK = 2048
WEIGHTS = 2 * 8_030_261_248
"""Bytes of Llama-3.1-8B in bfloat16."""
PARTS = ("queries", "scores", "budgets", "selection", "storing")


def parts(
    scorer: Scorer, allocator: Allocator, own: Protection, tokens: int, rope: Rope | None, output: torch.Tensor
) -> dict[str, Callable[[int], object]]:
    """What the backend does with one layer's prompt, step by step (lukv.selection.Eviction.keep and arena)."""
    queries = torch.randn(LARGE.query_heads, tokens, LARGE.head_dim, dtype=torch.bfloat16)
    keys, values = (torch.randn(LARGE.kv_heads, tokens, LARGE.head_dim, dtype=torch.bfloat16) for _ in range(2))
    protection = own.over(scorer)
    seen = scorer.observe(None, queries, 0, rope)
    about = LARGE.query_heads, LARGE.head_dim**-0.5, None, seen, rope, output
    layer = PromptLayer(0, 2, keys, values, *about)
    scores = scorer.score(layer)
    raised = protect(scores, protection)
    heads = make_head_scores(layer, raised, protection)
    counts = allocator.counts_of_layers(Budget(share=SHARE), [heads])[0]
    keep = select_best(raised, counts)
    return {
        "queries": lambda i: scorer.observe(None, queries, 0, rope),
        "scores": lambda i: scorer.score(layer),
        # another budget each time: a table's counts are remembered for the one asked for last
        "budgets": lambda i: allocator.counts_of_layers(Budget(share=round(SHARE + 1e-7 * i, 7)), [heads]),
        "selection": lambda i: select_best(protect(scores, protection), counts),
        "storing": lambda i: pack([keys], [values], [keep]),
    }


@torch.no_grad()
def times(section: Section, tokens: int) -> None:
    model = model_of(LARGE, 1, torch.bfloat16)
    use_ragged_attention(model)
    ids = ids_of(tokens)
    model(ids[:, :64])
    layer = min(seconds(lambda: compress(model, ids)) for _ in range(3 if section.full and tokens < 10_000 else 1))
    section.text(f"{tokens} tokens; the layer's prefill, keeping everything, takes {layer:.2f} s. Milliseconds:")
    section.head("method", *PARTS, "together", "of the layer's prefill")
    rope, output = make_rope(model, 0), model.model.layers[0].self_attn.o_proj.weight
    with tempfile.TemporaryDirectory() as folder:
        for name, (scorer, allocator, own) in methods(Path(folder), 2, LARGE.kv_heads).items():
            if scorer.makes_passes:  # benchmarks/scorers.py has them
                continue
            found = in_turn(parts(scorer, allocator, own, tokens, rope, output), 9 if section.full else 5)
            total = sum(found.values())
            section.row(
                name, *(f"{found[part] * 1e3:.2f}" for part in PARTS), f"{total * 1e3:.1f}", f"{total / layer:.2%}"
            )


def measure_peak(*arguments: object) -> dict[str, int]:
    """Bytes of one prefill in a process of its own: see benchmarks/_peak.py."""
    # glibc would keep freed blocks of up to 32 MiB for itself; with this it gives them back
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": str(2**20), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "benchmarks._peak", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def peaks(section: Section, tokens: int) -> None:
    section.text(f"""
        Memory of the process in a prefill of {tokens} tokens, above what it held before: 8 layers with the attention
        of an 8B model, float32, each kind in a fresh process. *cache*: the entries stored, exactly.
    """)
    section.head("kind", "peak, MiB", "of stock", "after, MiB", "cache, MiB", "of stock")
    stock: dict[str, int] = {}
    more = ("snapkv", "expected_attention") if section.full else ()
    for kind in ("stock", "everything", "lukv", *more):
        found = measure_peak("attention", tokens, kind)
        stock = stock or found
        peak, after, stored = (found[key] / 2**20 for key in ("peak", "after", "stored"))
        label = {"stock": "stock transformers", "everything": "ours, everything kept"}.get(kind, f"{kind}, {SHARE:.0%}")
        of_peak, of_stored = found["peak"] / stock["peak"], found["stored"] / stock["stored"]
        section.row(label, f"{peak:.0f}", f"{of_peak:.2f}", f"{after:.0f}", f"{stored:.1f}", f"{of_stored:.3f}")


def peaks_of_a_layer(section: Section, lengths: Sequence[int]) -> None:
    section.text(f"""
        The same for one whole layer of Llama-3.1-8B's geometry, bfloat16, one prompt, everything kept: run at once and
        in pieces of {CHUNK} tokens. *32 layers*: from this layer's peak, the keys and values that 31 others hold at
        most meanwhile, all of them, and {WEIGHTS / 2**30:.1f} GiB of weights, an output layer of 128256 words included.
    """)
    section.head("tokens", "at once, MiB", "in pieces, MiB", "keys and values, MiB", *2 * ("32 layers, GiB",))
    for tokens in lengths:
        whole, pieces = measure_peak("layer", tokens, "everything"), measure_peak("layer", tokens, "everything", CHUNK)
        stored = 2 * LARGE.kv_heads * LARGE.head_dim * tokens * 2
        sizes = (f"{size / 2**20:.0f}" for size in (whole["peak"], pieces["peak"], stored))
        section.row(tokens, *sizes, *(f"{(WEIGHTS + x['peak'] + 31 * stored) / 2**30:.1f}" for x in (whole, pieces)))


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    section.text(f"""
        One layer of Llama-3.1-8B's geometry (MLP included), bfloat16, one thread, {SHARE:.0%} kept, medians. *queries*:
        what a scorer keeps of them; *selection*: protection and the choice; *storing*: the kept entries into the arena.
    """)
    for tokens in (4096, 16384) if section.full else (4096,):
        times(section, tokens)
    peaks(section, 8192 if section.full else 2048)
    peaks_of_a_layer(section, (8192, 16384, 32768) if section.full else (4096,))


if __name__ == "__main__":
    run("Prefill: what eviction adds", measure)
