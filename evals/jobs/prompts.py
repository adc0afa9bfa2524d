"""A benchmark as token ids, and the batches in which it is asked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from evals.run import build
from evals.run.settings import InputError, create
from evals.task import Sample, Task
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


Context = list[Prompt]
"""Prompts that share one context."""


@lru_cache(maxsize=1)
def prepared(model_settings: str, benchmark_settings: str, limit: int | None) -> tuple[list[Prompt], dict[str, Any]]:
    """All samples as token ids, and the benchmark's facts; made once for the runs of a sweep that share them. Raises
    InputError for a sample that does not fit into the model."""
    model = build.load_model(model_settings)
    benchmark = create(json.loads(benchmark_settings))
    prompts: list[Prompt] = []
    longest = model.max_length
    length = getattr(benchmark, "length", None)
    if longest is not None and length is not None and length > longest:  # before so many tokens are generated
        raise InputError(
            f"{benchmark.name}: its samples have {length} tokens, {model.name} takes {longest}: "
            f"choose a smaller benchmark.length"
        )
    for task in benchmark.tasks(model.tokenizer, limit):
        for sample in task.samples:
            ids = ids_of(sample, model)
            total = len(ids[0]) + len(ids[1]) + sample.max_new_tokens
            if longest is not None and total > longest:
                raise InputError(
                    f"{sample.id}: {total} tokens with its answer, {model.name} takes {longest}: choose shorter prompts"
                )
            prompts.append(Prompt(sample, task, tuple(ids[0]), tuple(ids[1])))
    if not prompts:
        reasons = dict(benchmark.facts().get("left_out", {})).values()
        raise InputError(": ".join(["the benchmark has no samples", *list(reasons)[:1]]))
    name, times = Counter(p.sample.id for p in prompts).most_common(1)[0]
    if times > 1:
        raise InputError(f"{times} samples of the benchmark have the same id: {name}")
    return prompts, dict(benchmark.facts())


def ids_of(sample: Sample, model: LoadedModel) -> tuple[list[int], list[int]]:
    """Token ids of (the part that is compressed, the part after it)."""
    parts = sample.context, sample.question, sample.answer_prefix
    context, question = model.prompt_ids(*parts, chat=sample.chat, layout=sample.layout)
    return context[: sample.context_tokens], question


def prompt_hashes(prompts: Sequence[Prompt]) -> dict[str, str]:
    """One hash a task over everything the model is given."""
    hashes: dict[str, Any] = {}
    for p in prompts:
        key = f"{p.task.name} v{p.task.version}"
        hashes.setdefault(key, hashlib.sha256()).update(
            json.dumps([p.context, p.question, p.sample.max_new_tokens]).encode()
        )
    return {task: h.hexdigest()[:16] for task, h in hashes.items()}


def decoding(sample: Sample) -> tuple[Any, ...]:
    """What decides how an answer is decoded: only samples that have all of it in common are decoded together."""
    return sample.max_new_tokens, sample.min_new_tokens, sample.first_token_may_end, sample.stop


def batches(prompts: Sequence[Prompt], size: int) -> list[list[Context]]:
    """Contexts in batches of `size`: only those of one task, number of questions and length of answer go together, the
    longest first, so that a batch too large for the memory shows at the start."""
    groups: dict[tuple[Any, ...], dict[tuple[int, ...], Context]] = {}
    keys = [(p.task.name, *decoding(p.sample)) for p in prompts]
    asked = Counter((key, p.context) for key, p in zip(keys, prompts, strict=True))
    for key, p in zip(keys, prompts, strict=True):
        groups.setdefault((*key, asked[key, p.context]), {}).setdefault(p.context, []).append(p)
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
