"""A benchmark as token ids, and the batches in which its questions are asked."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from evals.run import build
from evals.run.instantiate import InputError, create
from evals.task import Sample, Task
from lukv.model import LoadedModel

BATCH_TOKENS = 2**16
"""Context tokens in a batch, at most, whatever batch_size says. One context always fits."""


@dataclass(frozen=True)
class TokenizedSample:
    """A sample as token ids. `context` is compressed; `question` is not, nor the template's tail and the answer prefix
    that are part of it."""

    sample: Sample
    task: Task
    context: tuple[int, ...]
    question: tuple[int, ...]


SharedContext = list[TokenizedSample]
"""Samples that ask about one context."""


def tokenize_benchmark(
    model_settings: str, benchmark_settings: str, limit: int | None
) -> tuple[list[TokenizedSample], dict[str, Any]]:
    """All samples as token ids, and the benchmark's facts. Made once for the runs of a sweep that share them, and again
    where a data file has changed.

    The settings are JSON. Raises InputError for a sample that does not fit into the model.
    """
    return _tokenize(model_settings, benchmark_settings, limit, describe_files(json.loads(benchmark_settings)))


FileStates = tuple[tuple[str | int, ...], ...]


def describe_files(settings: Any) -> FileStates:
    """Path, inode, size and times of every file that the settings name, also in folders: it tells that one changed."""
    if isinstance(settings, (dict, list)):
        values = settings.values() if isinstance(settings, dict) else settings
        return tuple(state for value in values for state in describe_files(value))
    if not isinstance(settings, str) or "\0" in settings or len(settings) > 4096:
        return ()
    path = Path(settings).expanduser()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found = [(str(file), file.stat()) for file in files if file.is_file()]
    return tuple((name, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns) for name, at in found)


@lru_cache(maxsize=1)
def _tokenize(
    model_settings: str, benchmark_settings: str, limit: int | None, files: FileStates
) -> tuple[list[TokenizedSample], dict[str, Any]]:
    model = build.load_model(model_settings)
    benchmark = create(json.loads(benchmark_settings))
    samples: list[TokenizedSample] = []
    longest = model.max_length
    length = getattr(benchmark, "length", None)
    if longest is not None and length is not None and length > longest:  # before so many tokens are generated
        raise InputError(
            f"{benchmark.name}: its samples have {length} tokens, {model.name} takes {longest}: "
            f"choose a smaller benchmark.length"
        )
    for task in benchmark.tasks(model.tokenizer, limit):
        for sample in task.samples:
            context, question = read_prompt(sample, model)
            total = len(context) + len(question) + sample.max_new_tokens
            if longest is not None and total > longest:
                raise InputError(
                    f"{sample.id}: {total} tokens with its answer, {model.name} takes {longest}: choose shorter prompts"
                )
            samples.append(TokenizedSample(sample, task, tuple(context), tuple(question)))
    if not samples:
        reasons = dict(benchmark.facts().get("left_out", {})).values()
        raise InputError(": ".join(["the benchmark has no samples", *list(reasons)[:1]]))
    name, times = Counter(s.sample.id for s in samples).most_common(1)[0]
    if times > 1:
        raise InputError(f"{times} samples of the benchmark have the same id: {name}")
    return samples, dict(benchmark.facts())


def read_prompt(sample: Sample, model: LoadedModel) -> tuple[list[int], list[int]]:
    """A sample's context and what follows it, as token ids. Raises InputError for what the model cannot be asked."""
    try:
        return model.prompt_ids(sample.context, sample.question, sample.answer_prefix, chat=sample.chat)
    except ValueError as error:
        raise InputError(f"{sample.id}: {error}") from error


def hash_prompts(samples: Sequence[TokenizedSample]) -> dict[str, str]:
    """Task and version -> a hash of everything that the model is given."""
    hashes: dict[str, Any] = {}
    for s in samples:
        key = f"{s.task.name} v{s.task.version}"
        hashes.setdefault(key, hashlib.sha256()).update(
            json.dumps([s.context, s.question, s.sample.max_new_tokens]).encode()
        )
    return {task: h.hexdigest()[:16] for task, h in hashes.items()}


def cut_batches(samples: Sequence[TokenizedSample], size: int) -> list[list[SharedContext]]:
    """Contexts in batches of `size`.

    Contexts of one task with the same number of questions and the same length of answer go together. The longest come
    first, so that a batch that is too large for the memory shows at the start.
    """
    groups: dict[tuple[Any, ...], dict[tuple[int, ...], SharedContext]] = {}
    keys = [(s.task.name, s.sample.max_new_tokens, s.sample.min_new_tokens, s.sample.stop) for s in samples]
    questions = Counter((key, s.context) for key, s in zip(keys, samples, strict=True))
    for key, s in zip(keys, samples, strict=True):
        groups.setdefault((*key, questions[key, s.context]), {}).setdefault(s.context, []).append(s)
    out: list[list[SharedContext]] = []
    for group in groups.values():
        batch: list[SharedContext] = []
        for context in sorted(group.values(), key=lambda c: -len(c[0].context)):
            if batch and (len(batch) >= size or (len(batch) + 1) * len(batch[0][0].context) > BATCH_TOKENS):
                out.append(batch)
                batch = []
            batch.append(context)
        out.append(batch)
    return out
