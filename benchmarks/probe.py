"""What the utility probe's score costs beside a layer's prefill attention: python -m benchmarks.probe [--full]

Geometry of an 8B model (32 query heads, 8 KV heads of 128), float32 on one core; CPU time, the least of several runs,
all in one process on the same tensors. KeyDiff beside it, the cheapest of the other scorers.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F

from baselines.keydiff import KeyDiff
from benchmarks.oracle import HEADS, KV_HEADS, WIDTH, seconds
from lukv.check import rope
from lukv.probe import OTHERS, Probe, UtilityProbe
from lukv.scoring import PromptLayer


def row(tokens: int, scorer: UtilityProbe, repeats: int) -> str:
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
    cells = [f"{1e3 * t:.0f} ms, {100 * t / attention:.2f}%" for t in (
        seconds(lambda: scorer.score(layer), repeats), seconds(lambda: KeyDiff().score(layer), repeats)
    )]  # fmt: skip
    return f"| {tokens} | {attention:.2f} s | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="16384 tokens too (minutes)")
    full = parser.parse_args().full
    torch.set_num_threads(1)
    weights = np.random.default_rng(0).normal(size=(1, KV_HEADS, 2 * WIDTH + OTHERS)).astype(np.float32)
    scorer = UtilityProbe()
    scorer.__dict__["probe"] = Probe(weights, {})  # what it would have read from its file
    print("| tokens | prefill attention of the layer | utility probe | KeyDiff |\n|---|---|---|---|")
    for tokens in (1024, 4096, 16384) if full else (1024, 4096):
        print(row(tokens, scorer, repeats=7 if tokens <= 4096 else 3), flush=True)


if __name__ == "__main__":
    main()
