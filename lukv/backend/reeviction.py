"""Evict again from a cache that is ragged already: a second turn, a long answer, or a prompt that streams in.

The heads hold different positions by now, so each is scored by itself, as a layer of one KV head over its own entries.
The allocator still sees all heads over all tokens seen; those that are gone have the lowest score there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lukv.allocation import HeadScores
from lukv.backend.arena import Arena, pack_sequences
from lukv.eviction import Eviction, best, protect
from lukv.scoring import PromptLayer, Rope, Scorer

if TYPE_CHECKING:
    from lukv.backend.layer import RaggedLayer


class HeadQueries:
    """What a scorer observes of one batch row, one KV head (and its query heads) at a time."""

    def __init__(self, scorer: Scorer, kv_heads: int) -> None:
        self.scorer = scorer
        self.heads: list[Any] = [None] * kv_heads

    def add(self, queries: Tensor, start: int, rope: Rope | None) -> None:
        """queries [H, n, d] at positions start .. start+n-1."""
        if queries.shape[1]:
            pieces = queries.chunk(len(self.heads))
            self.heads = [self.scorer.observe(seen, q, start, rope) for seen, q in zip(self.heads, pieces, strict=True)]


def shrink(layer: RaggedLayer, due: np.ndarray) -> tuple[Arena, Tensor]:
    """The entries that stay of those stored when the plan's later eviction comes: (arena, positions). A row that is not
    due (due [B] bool) is left as it is."""
    arena = layer.arena
    assert arena is not None
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for row in range(arena.batch):
        if due[row]:
            kept += shrink_row(layer, arena, row, layer.plan.later_of(row))
        else:
            sequences = range(row * arena.heads, (row + 1) * arena.heads)
            kept += [(*arena.sequence(i), layer.positions_of(i)) for i in sequences]
    return pack_sequences(kept, arena.batch)


def shrink_row(layer: RaggedLayer, arena: Arena, row: int, eviction: Eviction) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(keys, values, positions) that stay of each KV head of one batch row."""
    query_heads, scale, softcap = layer.attributes
    sequences = range(row * arena.heads, (row + 1) * arena.heads)
    positions = [layer.positions_of(i) for i in sequences]
    tokens = int(layer.tokens[row])
    gone = torch.finfo(torch.float32).min
    scores = torch.full((arena.heads, tokens), gone, device=arena.keys.device)
    for head, index in enumerate(sequences):
        keys, values = arena.sequence(index)
        if len(keys) == 0:
            continue
        observed = layer.head_queries[row].heads[head] if layer.head_queries else None
        one = PromptLayer(
            layer.index,
            layer.plan.layers,
            keys[None],
            values[None],
            query_heads // arena.heads,
            scale,
            softcap,
            observed=observed,
            rope=layer.rope,
            positions=positions[head],
            seen=tokens,
            head=head,
        )
        scores[head, positions[head]] = eviction.scorer.score(one)[0]
    stored = scores != gone
    protection = eviction.protection.over(eviction.scorer)
    # a head whose sinks are gone must not have them back: protection raises only what is there
    raised = torch.where(stored, protect(scores, protection, eviction.scorer.name), scores)
    heads = HeadScores(raised, protection.mask(tokens, raised.device), layer.index, layer.plan.layers)
    keep = best(raised, eviction.allocator.counts(eviction.budget, heads)) & stored
    kept = []
    for head, index in enumerate(sequences):
        stays = keep[head, positions[head]]
        keys, values = arena.sequence(index)
        kept.append((keys[stays], values[stays], positions[head][stays]))
    return kept
