"""What a line of samples.jsonl says of an answer and of the cache that it was given from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from evals.jobs.prompts import TokenizedSample
from evals.run.records import KeptTokens, WhileAnswering
from evals.task import Sample
from lukv.backend.cache import RaggedCache
from lukv.backend.reeviction import LaterEviction
from lukv.model import LoadedModel

Line = dict[str, Any]
"""A line of samples.jsonl: a SampleRecord or a FailedSample of records.py."""

QUESTION = 1000
"""Characters of a question that are recorded: the last ones, as few-shot examples come first."""

PLACES = ("length", "depth", "turn")
"""What a line also has of a sample's `extra`: its place in a grid that the report draws, or in a conversation."""

LAYER_GROUPS = 4
"""Groups of neighbouring layers whose kept tokens are recorded apart."""


def score_answer(question: TokenizedSample, tokens: list[int], model: LoadedModel) -> Line:
    """The answer's part of a line of samples.jsonl."""
    text = model.decode(tokens)
    scores: Mapping[str, float] = dict(question.task.metric(text, question.sample))
    return {
        "id": question.sample.id,
        "task": question.task.name,
        "question": question.sample.question[-QUESTION:],
        **find_answer(question.sample),
        **{name: question.sample.extra[name] for name in PLACES if name in question.sample.extra},
        "prediction": text,
        "references": list(question.sample.references),
        "score": next(iter(scores.values())),
        "scores": scores,
    }


def describe_evictions(evictions: Sequence[LaterEviction]) -> WhileAnswering:
    """What the evictions while answering left of one row."""
    return {
        "tokens": [each.tokens for each in evictions],
        "entries": [int(each.kept.sum()) for each in evictions],
        "kept": evictions[-1].kept.tolist() if evictions else [],
    }


def describe_kept(cache: RaggedCache, row: int, context: Sequence[int], model: LoadedModel) -> KeptTokens:
    """Which tokens of a row's compressed context are in the cache, for groups of neighbouring layers."""
    layers = len(cache.evictable)
    groups = [group for group in np.array_split(np.arange(layers), LAYER_GROUPS) if len(group)]
    told = {}
    for group in groups:
        heads = [positions for layer in group for positions in cache.find_positions(int(layer), row)]
        counts = np.bincount(torch.cat(heads).cpu().numpy(), minlength=len(context))
        name = f"{group[0]}-{group[-1]}" if len(group) > 1 else f"{group[0]}"
        told[name] = "".join(str(round(9 * count / len(heads))) for count in counts)
    return {"tokens": cut_text(context, model), "layers": told}


def cut_text(tokens: Sequence[int], model: LoadedModel) -> list[str]:
    """The text of each token as it stands behind another: some tokenizers drop a text's first space."""
    decode = model.tokenizer.decode
    before = str(decode([tokens[0]]))
    return [before, *(str(decode([tokens[0], token]))[len(before) :] for token in tokens[1:])]


def find_answer(sample: Sample) -> dict[str, float]:
    """{"answer_depth": where the context says a right answer first (0..1)}; empty where it says none."""
    found = [at for text in sample.references if text and (at := sample.context.find(text)) >= 0]
    return {"answer_depth": round(min(found) / len(sample.context), 4)} if found else {}


def describe_cache(kept: np.ndarray, tokens: int, stored: int, full: int) -> Line:
    """The cache's part of it. kept [layers, K]: entries, of `tokens` each. stored, full: bytes."""
    return {
        "context_tokens": tokens,
        "kept_share": float(kept.sum()) / (kept.size * tokens),
        "kept": kept.tolist(),
        "cache_bytes": stored,
        "full_cache_bytes": full,
    }
