"""Time the method and the full cache in turns, in one process, on random tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, cast

import numpy as np
import torch

from evals.jobs.device import read_peak_bytes, reset_peak, synchronize
from evals.jobs.progress import show_progress
from evals.run import build
from evals.run.folder import RunFolder
from evals.run.instantiate import InputError
from evals.run.records import Latency, LatencyRow
from evals.run.run_id import name_cache
from evals.run.settings import Run
from lukv.backend.generate import answer, compress
from lukv.backend.options import Later
from lukv.model import LoadedModel
from lukv.selection import Eviction

LONGEST = 2**15
"""Tokens of the longest context that is measured unless job.lengths says otherwise."""

QUESTION = 16
"""Tokens of the question after it."""


Evictions = tuple[Eviction | None, Later | None]
"""What evicts the prompt, and what evicts while answering. None: nothing."""


def measure_run(folder: RunFolder) -> Latency:
    """Begin the run and measure it. Raises InputError for what cannot be measured."""
    run = folder.run
    job = run["job"]
    with build.input_errors(run):
        build.check_model(run)
        method = build.build_method(run)
        for name in ("repeats", "new_tokens", "batch"):
            if job[name] is None or job[name] < 1:
                raise InputError(f"job.{name}={job[name]} must be at least 1")
        model = build.get_model(run)
        eviction = build.build_eviction(run, method, model)
        if eviction is not None and eviction.scorer.needs_answer:
            raise InputError(f"scorer={eviction.scorer.name} has to know the answer: job=latency has none")
        if eviction is not None and eviction.scorer.needs_question:
            raise InputError(f"scorer={eviction.scorer.name} looks from the question: job=latency has none")
        build.check_turns(run, turns=False)
        later = build.build_later(run, method, model)
        if later is not None and job["new_tokens"] + QUESTION <= run["decoding"]["every"]:
            raise InputError(
                f"job.new_tokens={job['new_tokens']}: with a question of {QUESTION} tokens nothing is evicted before "
                f"decoding.every={run['decoding']['every']} of them: try job.new_tokens={4 * run['decoding']['every']}"
            )
        methods: dict[str, Evictions] = {" ".join([run["method"], *name_cache(run.config)]): (eviction, later)}
        if eviction is not None and run["reference"]:
            methods[run["reference"]] = None, None
        lengths = choose_lengths(job["lengths"], job["new_tokens"], model)
    folder.begin(build.describe_model(model))
    done = count()
    with show_progress(folder.path.name, len(lengths) * (1 + job["repeats"]), "rounds") as reached:
        reached(next(done))
        rows = [r for length in lengths for r in measure(methods, length, model, run, lambda: reached(next(done)))]
    return {
        "status": "done",
        "run_id": run.id,
        "rows": rows,
        "attention": sorted({row["attention"] for row in rows}),
        "memory": {"peak_bytes": read_peak_bytes()},
    }


def choose_lengths(lengths: int | Sequence[int] | None, new_tokens: int, model: LoadedModel) -> list[int]:
    """The lengths of contexts in tokens: as given, or powers of two up to what the model takes."""
    room = (model.max_length or LONGEST) - QUESTION - new_tokens
    if lengths is None:
        return [2**k for k in range(7, 16) if 2**k <= min(room, LONGEST)][-4:] or [room]
    lengths = [lengths] if isinstance(lengths, int) else list(lengths)
    if not lengths:
        raise InputError("job.lengths=[] names no length: give some, as in job.lengths=[1024,4096], or null")
    for length in lengths:
        if not 0 < length <= room:
            raise InputError(
                f"job.lengths: a context of {length} tokens, {model.name} takes 1 to {room} with question and answer"
            )
    return lengths


def measure(
    methods: dict[str, Evictions], length: int, model: LoadedModel, run: Run, step: Callable[[], None]
) -> list[LatencyRow]:
    """Medians for each method at one length. The first round warms up and is not counted. step: called after each."""
    job = run["job"]
    draw = np.random.default_rng(run["seed"])
    vocabulary = model.config.vocab_size
    context = draw.integers(0, vocabulary, (job["batch"], length)).tolist()
    question = draw.integers(0, vocabulary, (job["batch"], QUESTION)).tolist()
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in methods}
    for _ in range(1 + job["repeats"]):
        for name, evictions in methods.items():
            rounds[name].append(measure_once(context, question, evictions, model, job["new_tokens"], run["attention"]))
        step()
    rows = []
    for name, measured in rounds.items():
        medians = {k: float(np.median([m[k] for m in measured[1:]])) for k in measured[0] if k != "attention"}
        about = {"method": name, "context_tokens": length, "batch": job["batch"]}
        rows.append(cast(LatencyRow, {**about, **medians, "attention": measured[-1]["attention"]}))
    return rows


@torch.inference_mode()
def measure_once(
    context: list[list[int]],
    question: list[list[int]],
    evictions: Evictions,
    model: LoadedModel,
    new: int,
    attention: str,
) -> dict[str, Any]:
    """One prefill and one answer of `new` tokens: a LatencyRow's times in seconds, bytes and kernel."""
    reset_peak()
    start = time.perf_counter()
    eviction, later = evictions
    again, every = (None, None) if later is None else (later.eviction, later.every)
    cache = compress(model, context, eviction=eviction, attention=attention, later=again, every=every)
    synchronize(model.device)
    prefill = time.perf_counter() - start
    stored = cache.nbytes
    said = answer(model, cache, question, new)  # no end-of-text token: all rows run to the end
    return {
        "prefill_s": prefill,
        "ttft_s": prefill + said.ttft_s,
        "tpot_s": said.tpot_s,
        "cache_bytes": stored,
        "answered_cache_bytes": cache.nbytes,
        "peak_bytes": read_peak_bytes(),
        "attention": cache.kernel,
    }
