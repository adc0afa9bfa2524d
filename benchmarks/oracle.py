"""What the oracle and SnapKV's scores cost beside a layer's prefill attention.

Geometry of an 8B model (32 query heads, 8 KV heads of 128), float32 on one core; CPU time, the least of several runs,
all in one process on the same tensors. The last column is what the definition costs: eager attention with T x T
weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks._section import Section, run
from lukv.ops import attention_mass, output_gram, utility, value_weight

HEADS, KV_HEADS, WIDTH, HIDDEN, ROWS, WINDOW = 32, 8, 128, 4096, 64, 32
EAGER_LIMIT = 4096  # tokens: beyond, T x T weights do not fit on a small machine


def seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def eager(queries: Tensor, keys: Tensor, scale: float) -> Tensor:
    """[H, T] largest attention over the last ROWS rows, by the whole matrix, head by head."""
    out = []
    for head in range(HEADS):
        logits = queries[head] @ keys[head // (HEADS // KV_HEADS)].T * scale
        weights = logits.masked_fill(torch.ones_like(logits, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        out.append(weights[-ROWS:].amax(0))
    return torch.stack(out)


def row(tokens: int, repeats: int) -> list[str]:
    torch.manual_seed(0)
    scale = WIDTH**-0.5
    queries = torch.randn(HEADS, tokens + ROWS, WIDTH)
    keys, values = (torch.randn(KV_HEADS, tokens + ROWS, WIDTH) for _ in range(2))
    gram = output_gram(torch.randn(HIDDEN, HEADS * WIDTH), HEADS)
    group = HEADS // KV_HEADS

    def prefill() -> None:
        """Head by head, so that no copy of the keys is counted."""
        for head in range(HEADS):
            q, k, v = (x[None, None, :tokens] for x in (queries[head], keys[head // group], values[head // group]))
            F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)

    weight = value_weight(values[:, :tokens], gram)
    future = queries[:, -ROWS:]
    attention = seconds(prefill, max(1, repeats // 2))
    snapkv = seconds(
        lambda: attention_mass(queries[:, tokens - WINDOW : tokens], keys[:, :tokens], scale, tokens - WINDOW), repeats
    )
    rows = seconds(lambda: utility(future, keys, weight, scale), repeats)
    weights = seconds(lambda: value_weight(values[:, :tokens], gram), repeats)
    plain = f"{seconds(lambda: eager(queries, keys, scale), 1):.2f} s" if tokens <= EAGER_LIMIT else "-"
    cells = [
        f"{attention:.2f} s",
        *(f"{1e3 * t:.0f} ms, {100 * t / attention:.1f}%" for t in (snapkv, rows, weights)),
        plain,
    ]
    return [str(tokens), *cells]


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    section.text(f"""
        One layer of {HEADS} query and {KV_HEADS} KV heads of {WIDTH}, float32, one thread. The per cents are of that
        layer's prefill attention. *SnapKV*: its scores from the last {WINDOW} rows; *oracle*: the rows of {ROWS} future
        tokens; *value weights*: once a context; *eager*: what the definition costs, T x T weights.
    """)
    section.head("tokens", "prefill attention", "SnapKV", "oracle", "value weights", "eager")
    for tokens in (1024, 4096, 16384) if section.full else (1024, 4096):
        section.row(*row(tokens, repeats=5 if tokens <= 4096 else 2))


if __name__ == "__main__":
    run("Oracle and SnapKV's scores beside prefill attention", measure)
