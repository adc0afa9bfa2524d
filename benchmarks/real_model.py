"""SmolLM2-135M in bfloat16 on RULER: samples a minute of one run, a sweep, kvpress's pipeline and stock generate().

Ours is the whole evaluation, and its processor time is taken apart: the same prompts are prefilled without eviction,
prefilled with it, and answered once more by hand; what the evaluation takes beyond that is the harness.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache

from benchmarks._kvpress import no_peers
from benchmarks._section import Section, Skip, run
from benchmarks.throughput import compose, pipeline, seconds, write_samples
from evals.jobs.prompts import TokenizedSample, tokenize
from evals.ruler import Ruler
from evals.run import build
from lukv.backend.generate import answer, compress
from lukv.model import LoadedModel
from lukv.selection import Eviction

MODEL = "model=smollm2-135m-q4"
TASKS = ("niah_single_1", "vt")
METHOD, PRESS, SHARE = "keydiff", "KeyDiffPress", 0.2
SWEPT = (0.1, 0.2, 0.3, 0.5)


def processor(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def take_apart(
    model: LoadedModel, samples: Sequence[TokenizedSample], eviction: Eviction | None, batch: int
) -> tuple[float, float, float]:
    """Processor seconds of (prefill, eviction, answers) by hand, `batch` samples of a task at a time."""
    prefill = evicted = said = 0.0
    for task in dict.fromkeys(sample.task.name for sample in samples):
        same = [sample for sample in samples if sample.task.name == task]
        for i in range(0, len(same), batch):
            part = same[i : i + batch]
            contexts, tokens = [list(s.context) for s in part], part[0].sample.max_new_tokens
            prefill += processor(lambda contexts=contexts: compress(model, contexts))
            begin = time.process_time()
            cache = compress(model, contexts, eviction=eviction)
            evicted += time.process_time() - begin
            questions = [list(s.question) for s in part]
            said += processor(
                lambda cache=cache, questions=questions, tokens=tokens: answer(
                    model, cache, questions, tokens, model.eos_ids
                )
            )
    return prefill, evicted - prefill, said


@torch.no_grad()
def generate(model: LoadedModel, samples: Sequence[TokenizedSample]) -> float:
    """Processor seconds of transformers' own generate() with the full cache, one sample at a time."""
    network: Any = model.model
    ours = network.config._attn_implementation
    network.set_attn_implementation("sdpa")
    begin = time.process_time()
    for sample in samples:
        ids = torch.tensor([[*sample.context, *sample.question]])
        network.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            past_key_values=DynamicCache(),
            max_new_tokens=sample.sample.max_new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
    taken = time.process_time() - begin
    network.set_attn_implementation(ours)
    return taken


def rows(section: Section, model: LoadedModel, saved: Path, length: int, limit: int, folder: Path) -> None:
    samples, _ = tokenize(model, Ruler(length, tasks=TASKS), limit)
    n = write_samples(folder / "samples.jsonl", length, limit, TASKS, model.tokenizer)
    theirs = pipeline(saved, "bfloat16", folder / "samples.jsonl", "none", SHARE, PRESS).get(PRESS, {})
    base = theirs.get("seconds")

    def row(what: str, taken: float, many: int = n, parts: Sequence[str] = ("", "", "", "")) -> None:
        ratio = f"{base / n / (taken / many):.2f}" if base else "-"
        section.row(f"{length} tokens, {what}", f"{60 * many / taken:.1f}", ratio, f"{taken / many:.2f}", *parts)

    if base:
        row(f"kvpress {PRESS}", base)
    row("stock generate(), full cache", generate(model, samples))
    shared = [MODEL, f"method={METHOD}", f"benchmark.length={length}", f"benchmark.tasks=[{','.join(TASKS)}]"]
    shared += [f"limit={limit}"]
    for batch in (1, 8):
        one = compose(*shared, f"budget={SHARE}", f"batch_size={batch}", f"runs={folder}/{batch}")
        taken = seconds([one])
        prefill, scoring, said = take_apart(
            model, samples, build.build_eviction(one, build.build_method(one), model), batch
        )
        harness = taken - prefill - scoring - said
        row(
            f"ours `method={METHOD} budget={SHARE} batch_size={batch}`",
            taken,
            parts=[
                *(f"{part / n:.2f}" for part in (prefill, scoring, said)),
                f"{harness / n:.2f}, {harness / taken:.1%}",
            ],
        )
    budgets = [compose(*shared, f"budget={budget}", f"runs={folder}/swept") for budget in SWEPT]
    row(f"ours `-m budget={','.join(map(str, SWEPT))}`", seconds(budgets), n * len(SWEPT))


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    first = compose(MODEL, f"method={METHOD}", f"budget={SHARE}")
    try:
        with build.input_errors(first):
            build.check_model(first)
    except ValueError as error:
        raise Skip(str(error)) from error
    model = build.get_model(first)
    section.text(f"""
        Tasks {", ".join(TASKS)}; bfloat16, one thread, processor time, {SHARE:.0%} kept. kvpress's pipeline (0.5.5) and
        generate() answer one context at a time; kvpress tokenizes too, ours also makes the samples, scores and writes
        the records. Seconds are of one answer; *prefill*, *eviction* and *answer* are measured by hand on the same
        prompts, *harness* is what the evaluation takes beyond them (it may come out below zero where the machine is
        busy). Models are loaded before the clock starts.
    """)
    if why := no_peers():
        section.text(f"kvpress is not measured: {why}.")
    columns = ("samples a minute", "of kvpress", "seconds", "prefill", "eviction", "answer", "harness")
    section.head("context, program", *columns)
    with tempfile.TemporaryDirectory() as place:
        saved = Path(place, "model")
        model.model.save_pretrained(saved)
        model.tokenizer.save_pretrained(saved)
        seconds([compose(MODEL, f"method={METHOD}", "budget=0.5", "limit=1", f"runs={place}/warm",
                         "benchmark.length=512", f"benchmark.tasks=[{TASKS[0]}]")])  # fmt: skip
        for length, limit in ((1024, 8), (4096, 4)) if section.full else ((1024, 2),):
            folder = Path(place, str(length))
            folder.mkdir()
            rows(section, model, saved, length, limit, folder)


if __name__ == "__main__":
    run("SmolLM2-135M: samples a minute, and where the time goes", measure)
