"""What a GPU is needed for, in one call of eight minutes: kernels, whole model, largest batch, profiling.

Kernel times are those of a CUDA graph over many copies of the data (no Python in them); whole models run as an
evaluation runs them. Each line is printed when it is measured. What would begin after seven minutes is left out, what
fails is a line of its own, and the section is written with all the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import DynamicCache, PreTrainedModel

from benchmarks._measure import DEVICE, DTYPE, LARGE, Geometry, bandwidth, in_turn, seconds, uneven
from benchmarks._models import ids_of, model_of, twin
from benchmarks._section import Section, Skip, run
from benchmarks.decode_attention import copies, ragged_arenas, random
from benchmarks.decode_model import KeyNorm, eviction
from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import RaggedCache
from lukv.backend.generate import append, compress
from lukv.backend.kernels import list_kernels, pick
from lukv.budgets.oracle import UtilityOracle
from lukv.model import LoadedModel
from lukv.selection import Protection

SHARE = 0.2
H200 = 4.3e12  # bytes a second that a copy moves on an H200; the floor beside the measured one
MINUTES = 7.0


class Clock:
    """Begins what there is time for; a line says what was left out and what failed."""

    def __init__(self, section: Section) -> None:
        self.start, self.section = time.monotonic(), section

    def attempt(self, what: str, call: Callable[[], object]) -> None:
        if time.monotonic() - self.start > 60 * MINUTES:
            self.section.row(f"{what}: left out, the time is up")
            return
        try:
            call()
        except (RuntimeError, ImportError) as error:  # what CUDA and torch raise, lack of memory too
            self.section.row(f"{what}: failed, {' '.join(str(error).split())[:200]}")


def capture_graph(call: Callable[[int], object], many: int) -> Callable[[int], object]:
    """call(0) .. call(many - 1) as one CUDA graph; on a CPU as a loop."""
    if DEVICE.type == "cpu":
        return lambda _: [call(i) for i in range(many)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        call(0)
        call(1)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(many):
            call(i)
    return lambda _: graph.replay()


def kernels(section: Section, geometry: Geometry, tokens: int, speed: float, rounds: int = 30) -> None:
    """One layer's attention for one token: every kernel that runs here, against the full cache and the memory."""
    heads, d = geometry.kv_heads, geometry.head_dim
    group, scale = geometry.query_heads // heads, d**-0.5
    lengths = uneven(heads, tokens, SHARE)
    longest = int(lengths.max())
    arenas, start = ragged_arenas(geometry, lengths, copies(int(lengths.sum()), geometry, DTYPE), DTYPE)
    whole = copies(heads * tokens, geometry, DTYPE)
    fulls = [tuple(random(DTYPE, 1, heads, tokens, d) for _ in "kv") for _ in range(whole)]
    length = torch.tensor(lengths, dtype=torch.int32, device=DEVICE)
    query = random(DTYPE, heads, group, 1, d)
    flat = query.view(1, -1, 1, d)
    exact = pick("loop", DEVICE, torch.float32, d, d)[1]
    wanted = exact(query.float(), *(x.float() for x in arenas[0]), start, length, longest, scale, None)
    calls = {
        "full cache, SDPA": capture_graph(lambda i: sdpa(flat, *fulls[i], scale=scale, enable_gqa=True), len(fulls))
    }
    many = {"full cache, SDPA": len(fulls)}
    errors: dict[str, str] = {}
    for name in list_kernels():
        try:
            decode = pick(name, DEVICE, DTYPE, d, d).decode
        except ValueError:
            continue

        def ragged(i: int, decode=decode) -> Tensor:  # type: ignore[no-untyped-def]
            return decode(query, *arenas[i], start, length, longest, scale, None)

        # loop and reference ask the device for the lengths, which no graph can hold
        alone = name in ("loop", "reference")
        try:
            errors[name] = f"{float((ragged(0).float() - wanted).abs().max()):.0e}"
            calls[name] = (lambda i, ragged=ragged: ragged(0)) if alone else capture_graph(ragged, len(arenas))
        except RuntimeError as error:
            section.row(f"{geometry.name}, {tokens}, {name}: failed, {' '.join(str(error).split())[:200]}")
            continue
        many[name] = 1 if alone else len(arenas)
    times = {name: t / many[name] for name, t in in_turn(calls, rounds).items()}
    stored = 2 * int(lengths.sum()) * d * DTYPE.itemsize
    for name, t in times.items():
        moved = stored / SHARE if name == "full cache, SDPA" else stored
        section.row(
            f"{geometry.name}, {tokens}, {name}",
            f"{t * 1e6:.1f}",
            f"{times['full cache, SDPA'] / t:.2f} x",
            f"{t / (moved / speed):.2f}",
            f"{t / (moved / H200):.2f}",
            errors.get(name, "-"),
        )


def peak(call: Callable[[], object]) -> float:
    """GiB that the call needs at most, above what is allocated before it; 0 on a CPU."""
    if DEVICE.type == "cpu":
        call()
        return 0.0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**30


@torch.no_grad()
def whole_model(section: Section, stock: PreTrainedModel, ours: PreTrainedModel, tokens: int, batch: int) -> None:
    """Prefill one context; the batch is that context many times over. Where a cache does not fit, it says so."""
    ids, new = ids_of(tokens), ids_of(1, batch)
    kept: list[Any] = []

    def ragged() -> None:
        kept.append(compress(ours, ids, eviction=eviction(SHARE), chunk=8192 if tokens > 32768 else None))

    def full() -> None:
        cache: Any = DynamicCache(config=stock.config)
        for piece in ids.split(8192, 1):
            stock(piece, past_key_values=cache, logits_to_keep=1)
        if batch > 1:
            cache.batch_repeat_interleave(batch)
        kept.append(cache)

    variants: dict[str, tuple[Callable[[], None], Callable[[], Callable[[int], object]]]] = {
        "stock, full cache": (full, lambda: lambda i: stock(new, past_key_values=kept[0], logits_to_keep=1)),
        f"ours, {SHARE:.0%} kept": (ragged, lambda: step(ours, kept[0].select_rows([0] * batch), new)),
    }
    base = None
    for name, (prefill, stepper) in variants.items():
        kept.clear()
        try:
            took: list[float] = []
            gib = peak(lambda prefill=prefill, took=took: took.append(seconds(prefill)))  # type: ignore[misc]
            call = stepper()
            call(0)
            token = in_turn({"": call}, 20)[""]
        except torch.OutOfMemoryError:
            section.row(f"{tokens}, batch {batch}, {name}", "-", "-", "does not fit", "-", "-")
            continue
        base = base or token
        section.row(
            f"{tokens}, batch {batch}, {name}",
            f"{took[0]:.2f}",
            f"{gib:.2f}",
            f"{token * 1e3:.2f}",
            f"{base / token:.2f} x",
            f"{batch / token:.0f}",
        )
    kept.clear()


def step(model: PreTrainedModel, cache: RaggedCache, new: Tensor) -> Callable[[int], object]:
    cache.reserve(64)
    return lambda i: append(model, cache, new)


@torch.no_grad()
def largest_batch(section: Section, ours: PreTrainedModel, tokens: int, limit: int = 4096) -> None:
    """The largest power of two of contexts that can be decoded together, by trying."""
    fits = {}
    for name, share in (("all kept", None), (f"{SHARE:.0%} kept", SHARE)):
        fits[name] = 0
        one = compress(ours, ids_of(tokens), eviction=eviction(share) if share else None)
        batch = 1
        while batch <= limit:
            try:
                append(ours, one.select_rows([0] * batch), ids_of(1, batch))
            except torch.OutOfMemoryError:
                break
            fits[name] = batch
            batch *= 2
    section.row(tokens, *fits.values())


def profiling(section: Section, ours: PreTrainedModel, tokens: int) -> None:
    """One context of a calibration with one question, as job=calibrate measures it."""
    from lukv.budgets.solver import solve  # needs scipy, which a bare machine may lack

    loaded = LoadedModel(ours, SimpleNamespace(eos_token_id=None), "random", "", "")  # type: ignore[arg-type]
    scorer, protection = KeyNorm(), Protection(4, 1)
    context: list[Any] = []
    result: list[Tensor] = []
    oracle = UtilityOracle(loaded)
    ids, question = ids_of(tokens)[0].tolist(), ids_of(16)[0].tolist()
    first = seconds(lambda: context.append(oracle.prefill(ids, [scorer])))
    measured = context[0]
    ranking = seconds(lambda: result.append(measured.order(scorer, protection)[..., 5:]))
    rows = seconds(lambda: result.append(measured.utility(question)))
    budgets = seconds(lambda: solve(result[1].gather(-1, result[0]).double().numpy(), tokens))
    section.row(tokens, *(f"{t:.2f}" for t in (first, ranking, rows, budgets, first + ranking + rows + budgets)))


def measure(section: Section) -> None:
    if DEVICE.type != "cuda":
        raise Skip("it needs a CUDA device")
    clock, speed = Clock(section), bandwidth()
    section.text(f"""
        {torch.cuda.get_device_name()}, {str(DTYPE)[6:]}. One layer's attention for one token, {SHARE:.0%} kept
        unevenly, microseconds. *faster*: than SDPA over the full cache; *of floor*: the bytes it must read at
        {speed / 1e12:.2f} TB/s, which a copy moves here, and at the 4.3 TB/s of an H200; *error*: largest, against the
        loop in float32.
    """)
    section.head("heads, context, kernel", "us", "faster", "of floor", "of 4.3 TB/s", "error")
    for tokens in (8192, 32768, 131072):
        clock.attempt(f"{tokens}", lambda tokens=tokens: kernels(section, LARGE, tokens, speed))
    stock = model_of(LARGE, 32, DTYPE)
    ours = twin(stock)
    use_ragged_attention(ours)
    section.text("""
        Random weights in Llama-3.1-8B's geometry, 32 layers (vocabulary 2000). Prefill of one context, its peak memory
        above the weights, a further token of a batch of copies of it.
    """)
    section.head("context, batch, cache", "prefill, s", "peak, GiB", "token, ms", "faster", "tokens a second")
    for tokens, batch in ((8192, 1), (8192, 8), (32768, 1), (32768, 8), (131072, 1), (131072, 8)):
        what = f"{tokens}, batch {batch}"
        clock.attempt(what, lambda tokens=tokens, batch=batch: whole_model(section, stock, ours, tokens, batch))
    section.text("Contexts of that length that can be decoded together (powers of two, by trying):")
    section.head("context", "all kept", f"{SHARE:.0%} kept")
    for tokens in (8192, 32768):
        clock.attempt(f"{tokens}", lambda tokens=tokens: largest_batch(section, ours, tokens))
    section.text("Profiling one context for a budget table, one question, seconds:")
    section.head("context", "prefill", "ranking", "oracle", "solver", "together")
    clock.attempt("32768", lambda: profiling(section, ours, 32768))


if __name__ == "__main__":
    run("GPU", measure)
