"""What the utility probe's score costs beside a layer's prefill attention.

Geometry of an 8B model (32 query heads, 8 KV heads of 128), float32 on one core; CPU time, the least of several runs,
all in one process on the same tensors. KeyDiff beside it, the cheapest of the other scorers.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from baselines.keydiff import KeyDiff
from benchmarks._section import Section, run
from benchmarks.oracle import HEADS, KV_HEADS, WIDTH, seconds
from lukv.contract import rope
from lukv.learned import Probe
from lukv.probe import UtilityProbe
from lukv.scoring import PromptLayer


def row(tokens: int, scorer: UtilityProbe, repeats: int) -> tuple[str, ...]:
    torch.manual_seed(0)
    queries = torch.randn(HEADS, tokens, WIDTH)
    keys, values = torch.randn(2, KV_HEADS, tokens, WIDTH)
    group = HEADS // KV_HEADS

    def prefill() -> None:
        """Head by head, so that no copy of the keys is counted."""
        for head in range(HEADS):
            q, k, v = (x[None, None] for x in (queries[head], keys[head // group], values[head // group]))
            F.scaled_dot_product_attention(q, k, v, is_causal=True)

    layer = PromptLayer(0, 1, keys, values, HEADS, WIDTH**-0.5, rope=lambda at: rope(at, WIDTH))
    attention = seconds(prefill, max(1, repeats // 2))
    costs = (seconds(lambda: scorer.score(layer), repeats), seconds(lambda: KeyDiff().score(layer), repeats))
    return str(tokens), f"{attention:.2f} s", *(f"{1e3 * t:.0f} ms, {100 * t / attention:.2f}%" for t in costs)


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    section.text(f"""
        One layer of {HEADS} query and {KV_HEADS} KV heads of {WIDTH}, float32, one thread; the per cents are of that
        layer's prefill attention. KeyDiff beside it, the cheapest of the other scorers.
    """)
    scorer = UtilityProbe()
    shape = 1, KV_HEADS, scorer.count_weights(WIDTH, WIDTH)
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    scorer.__dict__["probe"] = Probe(weights, {}, scorer.kind)  # what it would have read from its file
    section.head("tokens", "prefill attention", "utility probe", "KeyDiff")
    for tokens in (1024, 4096, 16384) if section.full else (1024, 4096):
        section.row(*row(tokens, scorer, repeats=7 if tokens <= 4096 else 3))


if __name__ == "__main__":
    run("The utility probe's score beside prefill attention", measure)
