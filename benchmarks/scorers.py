"""What each scorer costs: time beside the prefill, memory until its layer is ranked, extra passes over the prompt."""

from __future__ import annotations

import ctypes
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks._measure import LARGE, in_turn, seconds
from benchmarks._methods import make_scorer
from benchmarks._models import ids_of, model_of
from benchmarks._section import ROOT, Section, run
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import compress
from lukv.backend.passes import run_passes
from lukv.backend.rope import make_rope
from lukv.conf import GROUPS
from lukv.model import load
from lukv.scoring import PromptLayer, Scorer

QUESTION = 32  # tokens of the prompt's end that are the question
FORMS = ("snapkv_kvpress", "snapkv_adakv", "snapkv_pyramid", "tova_kvpress", "lagkv_cross", "chunkkv_kvpress")
"""Other parameters of a scorer that has a row: the cost is the same."""
LONG = 1.0  # seconds: what takes longer is measured once
M_MMAP_THRESHOLD = -3  # glibc's: larger blocks go back to the system when they are freed


def list_scorers() -> list[str]:
    """All but other forms of the same, and the oracle, which needs an answer."""
    return [name for name in GROUPS["scorer"] if name not in (*FORMS, "oracle")]


def status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def count_bytes(observed: Any) -> int:
    """Of all tensors in what a scorer keeps of the queries."""
    if isinstance(observed, Tensor):
        return observed.nbytes
    return sum(map(count_bytes, observed)) if isinstance(observed, tuple) else 0


@torch.no_grad()
def one_layer(section: Section, tokens: int) -> None:
    model = model_of(LARGE, 1, torch.bfloat16)
    use_ragged_attention(model)
    ids = ids_of(tokens)
    model(ids[:, :64])
    whole = min(seconds(lambda: compress(model, ids)) for _ in range(3 if section.full else 1))
    output, rope = model.model.layers[0].self_attn.o_proj.weight, make_rope(model, 0)
    torch.manual_seed(0)
    queries = torch.randn(LARGE.query_heads, tokens, LARGE.head_dim, dtype=torch.bfloat16)
    keys, values = torch.randn(2, LARGE.kv_heads, tokens, LARGE.head_dim, dtype=torch.bfloat16)
    about = LARGE.query_heads, LARGE.head_dim**-0.5, None, None, rope, output, QUESTION
    layer = PromptLayer(0, 1, keys, values, *about)
    section.text(f"""
        {tokens} tokens. The layer's prefill takes {whole:.2f} s; its keys and values have
        {(keys.nbytes + values.nbytes) / 2**20:.0f} MiB.
    """)
    section.head("scorer", "queries, ms", "scores, ms", "of the layer's prefill", "kept, MiB", "scratch, MiB")
    with tempfile.TemporaryDirectory() as folder:
        for name in list_scorers():
            scorer = make_scorer(name, Path(folder), 1, LARGE.kv_heads, LARGE.head_dim)
            if not scorer.makes_passes:
                section.row(name, *measure_scorer(scorer, layer, queries, whole, 3))


def measure_scorer(scorer: Scorer, layer: PromptLayer, queries: Tensor, whole: float, rounds: int) -> list[str]:
    seen = replace(layer, observed=scorer.observe(None, queries, 0, layer.rope))
    kept = count_bytes(seen.observed)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = status("VmRSS")
    first = seconds(lambda: scorer.score(seen))
    scratch = max(0, status("VmHWM") - before)
    calls = {"queries": lambda i: scorer.observe(None, queries, 0, layer.rope), "scores": lambda i: scorer.score(seen)}
    found = in_turn(calls, 1 if first > LONG else rounds)
    times = [f"{1e3 * found[part]:.1f}" for part in calls]
    return [*times, f"{sum(found.values()) / whole:.2%}", f"{kept / 2**20:.1f}", f"{scratch / 2**20:.0f}"]


@torch.no_grad()
def whole_model(section: Section, tokens: int) -> None:
    model = load(ROOT / "models/tiny", device="cpu")
    ids = torch.randint(20, 400, (1, tokens), generator=torch.Generator().manual_seed(0)).tolist()
    prompts = [model.describe_prompt(ids[0])]
    layers, kv_heads, head_dim = model.layers, model.kv_heads, model.model.config.head_dim
    section.text(f"""
        The embedded model, one prompt of {tokens} tokens, float32. *added*: queries, extra passes and the ranking of
        all layers, beside a prefill that keeps everything; *tokens*: what the passes read behind the prompt.
    """)
    section.head("scorer", "added, ms", "of the prefill", "extra passes", "tokens")
    with tempfile.TemporaryDirectory() as folder:
        for name in list_scorers():
            scorer = make_scorer(name, Path(folder), layers, kv_heads, head_dim)
            passes = scorer.extra_passes(prompts[0])

            def score(i: int, scorer: Scorer = scorer) -> None:
                cache = compress(model, ids, observe=[scorer], questions=[QUESTION])
                run_passes(model, cache, [scorer], prompts)
                for index, layer in enumerate(cache.evictable):
                    scorer.score(layer.view(0, *cache.view_entries(index, 0), scorer))

            found = in_turn({"without": lambda i: compress(model, ids), "with": score}, 9 if section.full else 3)
            added = max(0.0, found["with"] - found["without"])
            section.row(
                name,
                f"{1e3 * added:.1f}",
                f"{added / found['without']:.1%}",
                len(passes),
                sum(len(p.ids) for p in passes),
            )


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)
    section.text(f"""
        One layer of Llama-3.1-8B's geometry (MLP included), bfloat16, one thread, medians. *queries*: what a scorer
        computes of the prompt's queries; *kept*: what it keeps of them until the layer is ranked, which in a single run
        is at once, and in a sweep when the whole prompt was read: times the number of layers; *scratch*: the process's
        peak while it scores, above what it held before. Scorers with extra passes are in the second table only.
        {", ".join(FORMS)} cost what the scorers of their names' beginnings cost; the oracle answers first.
    """)
    for tokens in (2048, 8192) if section.full else (2048,):
        one_layer(section, tokens)
    whole_model(section, 1024)


if __name__ == "__main__":
    run("What each scorer costs", measure)
