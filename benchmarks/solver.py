"""LU-KV's solver against the plain hull and heap.

All 99 budgets of one sample of 32 layers x 8 KV heads. CPU seconds of this process (other programs on the machine do
not count), the least of several runs; both in one process on the same utilities. Curves must be identical.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks._section import Section, run
from lukv.budgets.solver import kept_total, solve
from tests.reference.plain_solver import plain_solve

LAYERS, HEADS = 32, 8
INPUTS: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    # what attention looks like: a few tokens hold most of it, the better ranked ones more often
    "attention like": lambda r, n: r.lognormal(0, 2, (LAYERS, HEADS, n)) * np.arange(1, n + 1) ** -0.5,
    "heavy tailed": lambda r, n: r.pareto(1, (LAYERS, HEADS, n)) * r.lognormal(0, 1, (LAYERS, HEADS, 1)),
    "light tailed": lambda r, n: r.exponential(1, (LAYERS, HEADS, n)) * np.arange(1, n + 1) ** -0.5,
    "ranked perfectly": lambda r, n: -np.sort(-r.exponential(1, (LAYERS, HEADS, n))),
}


def seconds(call: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        times.append(time.process_time() - begin)
    return min(times)


def row(kind: str, tokens: int, repeats: int) -> tuple[str, ...]:
    utility = INPUTS[kind](np.random.default_rng(0), tokens - 5)
    ours = solve(utility, tokens)
    polished = solve(utility, tokens, polish=True)
    fast = seconds(lambda: solve(utility, tokens), repeats)
    fine = seconds(lambda: solve(utility, tokens, polish=True), 1)
    entries, limit = LAYERS * HEADS * tokens, tokens - max(5, (tokens + 50) // 100)
    discard = np.minimum(entries - kept_total(entries), LAYERS * HEADS * limit).tolist()
    heads = utility.reshape(LAYERS * HEADS, -1).tolist()
    begin = time.process_time()
    counts, _, bounds = plain_solve(heads, limit, discard)
    slow = time.process_time() - begin
    same = bool((tokens - np.array(counts) == ours.kept.reshape(99, -1)).all())
    np.testing.assert_allclose(ours.lower_bound, bounds, rtol=1e-9)
    gap, left = (100 * np.max(s.loss / s.lower_bound - 1) for s in (ours, polished))
    return (
        f"{tokens}, {kind}",
        f"{fast * 1e3:.1f} ms",
        f"{slow:.2f} s",
        f"{slow / fast:.0f} x",
        "yes" if same else "NO",
        f"{gap:.3f}%",
        f"{fine * 1e3:.0f} ms, {left:.3f}%",
    )


def measure(section: Section) -> None:
    section.text(f"""
        {LAYERS} x {HEADS} heads, all 99 budgets. *plain*: a stack per head and a heap, the straightforward program
        (tests/reference/plain_solver.py); *largest gap*: of the loss over its lower bound; *polished*: with
        `polish=True`.
    """)
    section.head("tokens, utilities", "ours", "plain", "ratio", "identical", "largest gap", "polished")
    for tokens in (4096, 32768) if section.full else (4096,):
        for kind in INPUTS:
            section.row(*row(kind, tokens, repeats=7 if tokens < 10_000 else 4))


if __name__ == "__main__":
    run("Solver", measure)
