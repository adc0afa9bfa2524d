"""The evaluation loop: compress a context once, ask its questions, score the answers, write each one down.

A run that was stopped goes on where it stopped. Batches are cut from the whole list of samples before those that are
done are left out, so a resumed run computes what an uninterrupted one would have.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from evals.harness import build
from evals.harness.aggregate import aggregate
from evals.harness.config import InputError, Run, create
from evals.harness.interrupt import finish_first
from evals.harness.memory import out_of_memory
from evals.harness.record import RunFolder
from evals.harness.show import result_table
from evals.harness.track import Tracker, following
from evals.task import Sample, Task
from lukv.backend.generate import answer, compress
from lukv.backend.selection import Eviction
from lukv.model import LoadedModel

BATCH_TOKENS = 2**16
"""A batch holds at most so many context tokens (but always one context), whatever batch_size says."""


@dataclass(frozen=True)
class Prompt:
    """A sample as token ids: `context` is compressed, `question` (template tail and answer prefix included) is not."""

    sample: Sample
    task: Task
    context: tuple[int, ...]
    question: tuple[int, ...]


def evaluate(run: Run) -> None:
    """job=evaluate: the run, then the reference run it is compared with, then both in one table."""
    result = evaluate_one(run)
    reference = run.reference()
    beside = evaluate_one(reference, wait=True) if reference else None
    print(result_table(result, beside))
    print(f"\n{run.folder}/")


def evaluate_one(run: Run, wait: bool = False) -> dict[str, Any]:
    """The result of one run: read if it is finished, else computed. `wait` for another process that computes it."""
    with RunFolder(run, wait) as folder:
        finished = folder.result()
        if finished is not None:
            if not wait:
                print(f"{run.id}: already done")
            return finished
        with build.input_errors():
            model = build.model(run)
            eviction = build.eviction(run, model)
            prompts, facts = prepared(build.model_settings(run), json.dumps(run["benchmark"]), run["limit"])
        folder.begin({"prompts": prompt_hashes(prompts), "benchmark": facts})
        start = time.perf_counter()
        done = {i: line for i, line in folder.samples().items() if "error" not in line}
        spent = sum(line["times"]["total_s"] for line in done.values())
        with following(run["track"], run.folder, list(done.values())) as tracker:
            failed = work(folder, prompts, done, model, eviction, run, tracker)
            if failed:
                raise RuntimeError(
                    f"{len(failed)} of {len(prompts)} samples failed, the first with: {failed[0]['error']}. "
                    f"The others are kept in {run.folder}; the same command tries these again"
                )
            result = aggregate(run, [done[p.sample.id] for p in prompts], spent + time.perf_counter() - start)
            result["left_out"] = sorted(facts.get("left_out", ()))
            folder.finish(result)
            tracker.finish(result)
        return result


@lru_cache(maxsize=1)
def prepared(model_settings: str, benchmark_settings: str, limit: int | None) -> tuple[list[Prompt], dict[str, Any]]:
    """All samples as token ids, and the benchmark's facts; made once for the runs of a sweep that share them. Raises
    InputError for a sample that does not fit into the model."""
    model = build.load_model(model_settings)
    benchmark = create(json.loads(benchmark_settings))
    prompts = []
    longest = getattr(model.config, "max_position_embeddings", None)
    for task in benchmark.tasks(model.tokenizer, limit):
        for sample in task.samples:
            ids = model.prompt_ids(sample.context, sample.question, sample.answer_prefix, chat=sample.chat)
            total = len(ids[0]) + len(ids[1]) + sample.max_new_tokens
            if longest is not None and total > longest:
                raise InputError(
                    f"{sample.id}: {total} tokens with its answer, {model.name} takes {longest}: choose shorter prompts"
                )
            prompts.append(Prompt(sample, task, tuple(ids[0]), tuple(ids[1])))
    if not prompts:
        raise InputError("the benchmark has no samples")
    name, times = Counter(p.sample.id for p in prompts).most_common(1)[0]
    if times > 1:
        raise InputError(f"{times} samples of the benchmark have the same id: {name}")
    return prompts, dict(benchmark.facts())


def prompt_hashes(prompts: Sequence[Prompt]) -> dict[str, str]:
    """One hash a task over everything the model is given."""
    hashes: dict[str, Any] = {}
    for p in prompts:
        key = f"{p.task.name} v{p.task.version}"
        hashes.setdefault(key, hashlib.sha256()).update(
            json.dumps([p.context, p.question, p.sample.max_new_tokens]).encode()
        )
    return {task: h.hexdigest()[:16] for task, h in hashes.items()}


Context = list[Prompt]
"""Prompts that share one context."""


def batches(prompts: Sequence[Prompt], size: int) -> list[list[Context]]:
    """Contexts in batches of `size`: only those of one task, number of questions and length of answer go together, the
    longest first, so that a batch too large for the memory shows at the start."""
    groups: dict[tuple[Any, ...], dict[tuple[int, ...], Context]] = {}
    shared: dict[tuple[str, tuple[int, ...]], int] = {}
    for p in prompts:
        shared[p.task.name, p.context] = shared.get((p.task.name, p.context), 0) + 1
    for p in prompts:
        s = p.sample
        key = (p.task.name, shared[p.task.name, p.context], s.max_new_tokens, s.min_new_tokens, s.stop)
        groups.setdefault(key, {}).setdefault(p.context, []).append(p)
    out: list[list[Context]] = []
    for group in groups.values():
        batch: list[Context] = []
        for context in sorted(group.values(), key=lambda c: -len(c[0].context)):
            if batch and (len(batch) >= size or (len(batch) + 1) * len(batch[0][0].context) > BATCH_TOKENS):
                out.append(batch)
                batch = []
            batch.append(context)
        out.append(batch)
    return out


def work(
    folder: RunFolder,
    prompts: Sequence[Prompt],
    done: dict[str, Any],
    model: LoadedModel,
    eviction: Eviction | None,
    run: Run,
    tracker: Tracker,
) -> list[dict[str, Any]]:
    """Answer what is not done yet; fills `done`, returns the lines of samples that failed."""
    failed = []
    progress = Progress(run.id, len(prompts), len(done))
    for batch in batches(prompts, run["batch_size"]):
        if all(p.sample.id in done for context in batch for p in context):
            continue
        with finish_first("the batch at hand"):
            for lines in attempt(batch, model, eviction, run["attention"]):
                new = [line for line in lines if line["id"] not in done]
                folder.append(new)
                failed += [line for line in new if "error" in line]
                done.update({line["id"]: line for line in new if "error" not in line})
                progress.update(len(new))
                for line in new:
                    tracker.sample(line)
    progress.close()
    return failed


def attempt(
    batch: list[Context], model: LoadedModel, eviction: Eviction | None, attention: str
) -> Iterator[list[dict[str, Any]]]:
    """The batch's lines. Where memory does not hold it: one context after the other; a sample that does not fit even
    alone is recorded as failed."""
    try:
        yield answer_batch(batch, model, eviction, attention)
        return
    except (RuntimeError, MemoryError) as e:
        reason = out_of_memory(e)
        if reason is None:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if len(batch) > 1:
        for context in batch:
            yield from attempt([context], model, eviction, attention)
    else:
        yield [{"id": p.sample.id, "task": p.task.name, "error": reason} for p in batch[0]]


@torch.inference_mode()
def answer_batch(
    batch: list[Context], model: LoadedModel, eviction: Eviction | None, attention: str
) -> list[dict[str, Any]]:
    """Compress the batch's contexts together, then ask the first question of each, the second of each, ..."""
    rows = [list(context[0].context) for context in batch]
    start = time.perf_counter()
    cache = compress(model, rows, eviction=eviction, attention=attention)
    synchronize(model.device)
    prefill = time.perf_counter() - start
    kept = np.asarray(cache.kept())
    share = cache.nbytes / max(int(kept.sum()), 1)
    full_share = cache.full_nbytes / sum(map(len, rows))
    lines = []
    for turn in range(len(batch[0])):
        asked = [context[turn] for context in batch]
        start = time.perf_counter()
        sample = asked[0].sample
        stop = model.stop_at(sample.stop)
        said = answer(
            model,
            cache,
            [list(p.question) for p in asked],
            sample.max_new_tokens,
            model.eos_ids,
            stop,
            min_new_tokens=sample.min_new_tokens,
        )
        synchronize(model.device)
        times = {
            "prefill_s": prefill,
            "ttft_s": prefill + said.ttft_s,
            "tpot_s": said.tpot_s,
            "total_s": (prefill / len(batch[0]) + time.perf_counter() - start) / len(batch),
            "batch": len(batch),
        }
        cache.rollback()
        for row, prompt in enumerate(asked):
            line = scored(prompt, said.tokens[row], model, kept[:, row], share, full_share)
            lines.append({**line, "times": times, "attention": cache.kernel})
    return lines


def scored(
    prompt: Prompt, tokens: list[int], model: LoadedModel, kept: np.ndarray, entry: float, full_entry: float
) -> dict[str, Any]:
    """The line of samples.jsonl. kept [layers, K] entries of `entry` bytes; `full_entry`: bytes a token, full cache."""
    text = model.decode(tokens)
    scores = dict(prompt.task.metric(text, prompt.sample))
    length = len(prompt.context)
    return {
        "id": prompt.sample.id,
        "task": prompt.task.name,
        "prediction": text,
        "references": list(prompt.sample.references),
        "score": next(iter(scores.values())),
        "scores": scores,
        "context_tokens": length,
        "kept_share": float(kept.sum()) / (kept.size * length),
        "kept": kept.tolist(),
        "cache_bytes": round(float(kept.sum()) * entry),
        "full_cache_bytes": round(length * full_entry),
    }


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Progress:
    """A bar on a terminal; in a log a plain line every tenth of the way."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total, self.done, self.start, self.first = name, total, done, time.perf_counter(), done
        self.bar = tqdm(total=total, initial=done, desc=name, unit="sample") if sys.stderr.isatty() else None
        if self.bar is None:
            print(
                f"{name}: {total} samples" + (f", {done} of them done before" if done else ""),
                file=sys.stderr,
                flush=True,
            )

    def update(self, n: int) -> None:
        before, self.done = self.done, self.done + n
        if self.bar is not None:
            self.bar.update(n)
        elif self.done * 10 // self.total > before * 10 // self.total:
            passed = time.perf_counter() - self.start
            left = passed / (self.done - self.first) * (self.total - self.done)
            print(
                f"{self.name}: {self.done}/{self.total}, {passed:.0f} s, about {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
