"""A benchmark as token ids, and the batches in which its questions are asked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from evals.errors import InputError
from evals.task import Benchmark, Sample, Task
from lukv.model import LoadedModel, common_start

BATCH_TOKENS = 2**16
"""Context tokens in a batch, at most, whatever batch_size says. One context always fits."""


@dataclass(frozen=True)
class TokenizedSample:
    """A sample as token ids. `context` is compressed; `question` is not, nor the template's tail and the answer prefix
    that are part of it. `seen`: how many of the context's last tokens are the question, 0 where it is not shown."""

    sample: Sample
    task: Task
    context: tuple[int, ...]
    question: tuple[int, ...]
    seen: int = 0


SharedContext = list[TokenizedSample]
"""Samples that ask about one context, or the turns of one conversation in their order."""


def tokenize(
    model: LoadedModel, benchmark: Benchmark, limit: int | None
) -> tuple[list[TokenizedSample], dict[str, Any]]:
    """All samples as token ids, and the benchmark's facts. Raises InputError for a sample that does not fit into the
    model."""
    samples: list[TokenizedSample] = []
    longest = model.max_length
    length = getattr(benchmark, "length", None)
    if longest is not None and length is not None and length > longest:  # before so many tokens are generated
        raise InputError(
            f"{benchmark.name}: its samples have {length} tokens, {model.name} takes {longest}: "
            f"choose a smaller benchmark.length"
        )
    tokenizer: Any = model.tokenizer
    said: Counter[str] = Counter()  # tokens of a conversation's turns so far, at most
    for task in benchmark.tasks(tokenizer, limit):
        for sample in task.samples:
            context, question = tokenize_sample(sample, model)
            said[sample.conversation] += len(question) + sample.max_new_tokens
            total = len(context) + (said[sample.conversation] if sample.conversation else said.pop(""))
            if longest is not None and total > longest:
                raise InputError(
                    f"{sample.id}: {total} tokens with its answer, {model.name} takes {longest}: choose shorter prompts"
                )
            seen = count_seen(sample, context, model)
            samples.append(TokenizedSample(sample, task, tuple(context), tuple(question), seen))
    if not samples:
        reasons = dict(benchmark.facts().get("left_out", {})).values()
        raise InputError(": ".join(["the benchmark has no samples", *list(reasons)[:1]]))
    name, times = Counter(s.sample.id for s in samples).most_common(1)[0]
    if times > 1:
        raise InputError(f"{times} samples of the benchmark have the same id: {name}")
    return samples, dict(benchmark.facts())


def tokenize_sample(sample: Sample, model: LoadedModel) -> tuple[list[int], list[int]]:
    """Token ids of (the part that is compressed, the part after it). Raises InputError for what the model cannot be
    asked."""
    parts = sample.context, sample.question, sample.answer_prefix
    try:
        context, question = model.prompt_ids(*parts, chat=sample.chat, layout=sample.layout)
        if sample.turn > 1:
            question = model.turn_ids(sample.question, sample.answer_prefix, chat=sample.chat)
    except ValueError as error:
        raise InputError(f"{sample.id}: {error}") from error
    return context[: sample.context_tokens], question


def count_seen(sample: Sample, context: Sequence[int], model: LoadedModel) -> int:
    """How many of the context's last tokens are the question that it shows. A token with characters of both is."""
    if not sample.seen_question:
        return 0
    before = sample.context.removesuffix(sample.seen_question)
    if not before:
        return len(context)
    alone, _ = model.prompt_ids(before, sample.seen_question, "", chat=sample.chat, layout=sample.layout)
    return len(context) - common_start(context, alone)


def hash_prompts(samples: Sequence[TokenizedSample]) -> dict[str, str]:
    """Task and version -> a hash of everything that decides an answer besides the model."""
    return hash_tasks((s, [s.context, s.question, s.sample.max_new_tokens, *list_rules(s.sample)]) for s in samples)


def list_rules(sample: Sample) -> list[Any]:
    """What ends an answer besides its length, and its place in a conversation. Nothing where nothing is of it: so it
    was before such rules were hashed."""
    rules: list[Any] = [sample.min_new_tokens, sample.first_token_may_end, list(sample.stop)]
    if sample.conversation:
        return [*rules, sample.turn, sample.stays]
    return [] if rules == [0, True, []] else rules


def hash_references(samples: Sequence[TokenizedSample]) -> dict[str, str]:
    """Task and version -> a hash of the right answers."""
    return hash_tasks((s, [s.sample.id, s.sample.references]) for s in samples)


def hash_tasks(parts: Iterable[tuple[TokenizedSample, Any]]) -> dict[str, str]:
    hashes: dict[str, Any] = {}
    for s, part in parts:
        hashes.setdefault(f"{s.task.name} v{s.task.version}", hashlib.sha256()).update(json.dumps(part).encode())
    return {task: h.hexdigest()[:16] for task, h in hashes.items()}


def key_decoding(sample: Sample) -> tuple[Any, ...]:
    """What decides how an answer is decoded: only samples that have all of it in common are decoded together."""
    return sample.max_new_tokens, sample.min_new_tokens, sample.first_token_may_end, sample.stop


def cut_batches(samples: Sequence[TokenizedSample], size: int) -> list[list[SharedContext]]:
    """Contexts in batches of `size`.

    Contexts of one task with the same number of questions and the same length of answer go together, and so do
    conversations that are alike in each turn. The longest come first, so that a batch that is too large for the memory
    shows at the start.
    """
    shared: dict[tuple[Any, ...], SharedContext] = {}
    for s in samples:
        apart = (s.task.name, *key_decoding(s.sample), s.context)
        shared.setdefault((s.sample.conversation,) if s.sample.conversation else apart, []).append(s)
    groups: dict[tuple[Any, ...], list[SharedContext]] = {}
    for context in shared.values():
        context.sort(key=lambda s: s.sample.turn)
        alike = [(s.task.name, *key_decoding(s.sample)) for s in context]
        groups.setdefault((context[0].sample.conversation != "", *alike), []).append(context)
    out: list[list[SharedContext]] = []
    for group in groups.values():
        batch: list[SharedContext] = []
        for context in sorted(group, key=lambda c: -len(c[0].context)):
            if batch and (len(batch) >= size or (len(batch) + 1) * len(batch[0][0].context) > BATCH_TOKENS):
                out.append(batch)
                batch = []
            batch.append(context)
        out.append(batch)
    return out
