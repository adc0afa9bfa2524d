"""How time and memory grow with context, samples and heads, with the exponents of straight lines in log-log."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from benchmarks._measure import DEVICE, DTYPE, TINY, in_turn, uneven
from benchmarks._models import ids_of, model_of
from benchmarks._section import Section, run
from benchmarks.decode_attention import ragged_arenas, random
from benchmarks.decode_model import eviction
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import append, compress
from lukv.backend.kernels import pick
from lukv.budgets.solver import solve

SHARE = 0.2


def exponent(x: Sequence[float], y: Sequence[float]) -> str:
    """The slope of log y over log x, by least squares."""
    return f"**{np.polyfit(np.log(x), np.log(y), 1)[0]:.2f}**"


def table(section: Section, name: str, columns: Sequence[str], rows: dict[int, Sequence[float]], form: str) -> None:
    section.head(name, *columns)
    for x, values in rows.items():
        section.row(x, *(format(value, form) for value in values))
    section.row("exponent", *(exponent(list(rows), y) for y in zip(*rows.values(), strict=True)))


@torch.no_grad()
def model_costs(tokens: int, batch: int, steps: int) -> list[float]:
    """ms: prefill and compression of a batch, a further token with 20% and with everything kept; MiB of both caches."""
    model = model_of(TINY, 4, DTYPE)
    use_ragged_attention(model)
    ids = ids_of(tokens, batch)
    compress(model, ids[:, :64])
    caches = {"kept": compress(model, ids, eviction=eviction(SHARE)), "full": compress(model, ids)}
    mib = [cache.nbytes / 2**20 for cache in caches.values()]
    for cache in caches.values():
        cache.reserve(steps + 1)
    prefill = in_turn({"prefill": lambda i: compress(model, ids, eviction=eviction(SHARE))}, 3)["prefill"]
    calls = {name: lambda i, cache=cache: append(model, cache, ids[:, :1]) for name, cache in caches.items()}
    token = in_turn(calls, steps)
    return [1e3 * prefill, 1e3 * token["kept"], 1e3 * token["full"], *mib]


def attention_cost(heads: int, tokens: int, rounds: int) -> float:
    """ms of one new token's attention over `heads` KV heads, four query heads each."""
    lengths = uneven(heads, tokens, SHARE)
    arenas, start = ragged_arenas(TINY, lengths, 2)
    length = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    query = random(heads, 4, 1, TINY.head_dim)
    decode = pick("auto", DEVICE, DTYPE, TINY.head_dim, TINY.head_dim)[1]
    longest = int(lengths.max())
    calls = {"": lambda i: decode(query, *arenas[i % 2], start, length, longest, TINY.head_dim**-0.5, None)}
    return 1e3 * in_turn(calls, rounds)[""]


def solver_cost(heads: int, tokens: int, rounds: int) -> float:
    """ms of one sample's budgets at 99 per cents, heads in layers of 8."""
    utility = np.random.default_rng(0).lognormal(0, 2, (max(1, heads // 8), min(8, heads), tokens - 5))
    return 1e3 * in_turn({"": lambda i: solve(utility, tokens)}, rounds)[""]


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    full = section.full
    section.text(f"""
        The tiny model's geometry with random weights (4 layers, 8/4 heads of 32), {str(DTYPE)[6:]}, one thread, medians
        in milliseconds; {SHARE:.0%} kept. An exponent of 1: twice as many cost twice as much.
    """)
    steps = 50 if full else 20
    cost = ("prefill and compression", "token, 20% kept", "token, all kept", "MiB, 20% kept", "MiB, all kept")
    lengths = (512, 1024, 2048, 4096, 8192, 16384) if full else (512, 1024, 2048, 4096)
    table(section, "context, batch 1", cost, {n: model_costs(n, 1, steps) for n in lengths}, ".2f")
    section.text("")
    batches = (1, 2, 4, 8, 16, 32) if full else (1, 2, 4, 8)
    table(section, "samples of 512 tokens in a batch", cost, {n: model_costs(512, n, steps) for n in batches}, ".2f")
    section.text("One layer's attention for one token over 4096 tokens, and one sample's solution at 1024 tokens:")
    heads = (1, 4, 16, 64, 256) if full else (4, 16, 64)
    rows = {n: (attention_cost(n, 4096, steps), solver_cost(n, 1024, 5)) for n in heads}
    table(section, "KV heads", ("attention", "solver"), rows, ".3f")


if __name__ == "__main__":
    run("Scaling", measure)
