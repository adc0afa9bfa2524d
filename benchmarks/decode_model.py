"""Time to the first token and of every further one, whole models: stock transformers, kvpress, ours.

Random weights; what is kept does not depend on them. Ours answers through lukv.backend.generate, as an evaluation does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from benchmarks._kvpress import no_peers, peers
from benchmarks._measure import DTYPE, LARGE, TINY, Geometry, in_turn, seconds, uneven
from benchmarks._models import ids_of, model_of, twin
from benchmarks._section import Section, run
from lukv.allocation import Allocator, Budget, HeadScores
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import append, compress
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Eviction, Protection

SHARE = 0.2


@dataclass(frozen=True)
class KeyNorm(Scorer):
    """The scorer that kvpress is given too: the smaller a key's norm, the more it matters."""

    name: str = "key_norm"

    def score(self, layer: PromptLayer) -> Tensor:
        return -layer.keys.norm(dim=-1).float()


@dataclass(frozen=True)
class Uneven(Allocator):
    """Head budgets as uneven as measured ones."""

    def counts(self, budget: Budget, layer: HeadScores) -> Tensor:
        return torch.from_numpy(uneven(layer.heads, layer.tokens, float(budget.of(layer.tokens))))


def eviction(share: float) -> Eviction:
    return Eviction(KeyNorm(), Uneven(), Protection(4, 1), Budget(share=share))


@torch.no_grad()
def rows(section: Section, geometry: Geometry, layers: int, tokens: int, stock: PreTrainedModel) -> None:
    ours = twin(stock)
    use_ragged_attention(ours)
    ids = ids_of(tokens)
    full: Any = DynamicCache(config=stock.config)
    kept: dict[str, Any] = {}
    for warm in (stock, ours):
        warm(ids[:, :64])

    def prefill(name: str) -> None:
        if name == "stock":
            stock(ids, past_key_values=full, logits_to_keep=1)
        else:
            kept[name] = compress(ours, ids, eviction=eviction(SHARE) if name == "ours" else None)

    first = {name: seconds(lambda name=name: prefill(name)) for name in ("stock", "everything", "ours")}  # type: ignore[misc]
    mib = {name: cache.nbytes / 2**20 for name, cache in kept.items()}
    for cache in kept.values():
        cache.reserve(256)
    calls = {
        "stock": lambda i: stock(ids[:, :1], past_key_values=full, logits_to_keep=1),
        "everything": lambda i: append(ours, kept["everything"], ids[:, :1]),
        "ours": lambda i: append(ours, kept["ours"], ids[:, :1]),
    }
    steps = (100 if section.full else 40) // (4 if geometry is LARGE else 1)
    token = in_turn(calls, steps)
    theirs = peers("model", geometry.name.split()[0], layers, tokens, steps, SHARE) or {}
    size = mib["everything"]
    table = [
        ("stock, full cache", first["stock"], token["stock"], 1.0, 1.0, size),
        *(
            (f"kvpress {name}", t["first"], t["token"], t["first"] / base["first"], t["token"] / base["token"], size)
            for name, t in theirs.items()
            if (base := theirs["full"]) is not t
        ),
        *(
            (label, first[name], token[name], first[name] / first["stock"], token[name] / token["stock"], mib[name])
            for name, label in (("everything", "ours, everything kept"), ("ours", f"ours, {SHARE:.0%} kept"))
        ),
    ]
    for label, first_s, token_s, of_first, of_token, stored in table:
        what = f"{geometry.name.split()[0]}, {layers} layers, {tokens}, {label}"
        cells = (f"{first_s:.3f}", f"{of_first:.2f}", f"{token_s * 1e3:.2f}", f"{of_token:.2f}", f"{stored:.2f}")
        section.row(what, *cells)


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    section.text("""
        Batch 1, one thread. Tiny: 4 layers of 8/4 heads of 32, width 128, float32. 8B: two layers of Llama-3.1-8B's
        geometry (32/8 heads of 128, width 4096, MLP 14336), bfloat16. The vocabulary has 2000 words: an output layer of
        128k would be a third of two layers' time. kvpress runs on the same weights and tokens. Both score by key norms
        and keep 0.25 to 1.75 of the mean a head (AdaKV: by its own rule). *first token*: prefill with scoring and
        eviction, one run; *further token*: median.
    """)
    if why := no_peers():
        section.text(f"kvpress is not measured: {why}.")
    section.head("model, context, cache", "first token, s", "of stock", "further token, ms", "of stock", "cache, MiB")
    for geometry, layers, dtype in ((TINY, 4, DTYPE), (LARGE, 2, torch.bfloat16)):
        stock = model_of(geometry, layers, dtype)
        lengths = (1024, 4096, 16384) if section.full else (1024,) if geometry is LARGE else (1024, 4096)
        for tokens in lengths:
            rows(section, geometry, layers, tokens, stock)


if __name__ == "__main__":
    run("Whole models: time to first token and per token", measure)
