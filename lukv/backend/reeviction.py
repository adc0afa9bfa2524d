"""Evict again from rows that are ragged already: a second turn, a long answer, or a prompt that streams in.

After the first eviction the KV heads of a layer hold different positions. So each head is scored by itself, as a layer
of one KV head over the entries it holds. The allocator still sees all heads over all tokens seen. Tokens that a head no
longer holds have the lowest score there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lukv.allocation import HeadScores
from lukv.backend.options import Later
from lukv.backend.padding import Range
from lukv.backend.prompt import PromptScores
from lukv.backend.stored import Stored
from lukv.scoring import PromptLayer, Rope
from lukv.selection import Eviction, protect, select_best

GONE = torch.finfo(torch.float32).min
"""The score of a token that a head no longer holds."""


class Reeviction:
    """One layer's later evictions.

    evictions: what evicts each batch row. last_check_at [B] int64: tokens of a row when `every` was last counted from.
    last_eviction_at [B] int64: tokens of a row when it was last evicted, -1 if it never was.
    """

    def __init__(self, later: Later, batch: int, kv_heads: int) -> None:
        self.evictions = [later.resolve(row) for row in range(batch)]
        self.every = later.every
        self.observed: list[list[Any]] = [[None] * kv_heads for _ in range(batch)]  # of each KV head's query heads
        self.commit()
        self.start(np.zeros(batch, dtype=np.int64))

    def start(self, tokens: np.ndarray) -> None:
        """Count from now on: the rows have seen `tokens` [B] tokens and were not evicted again yet."""
        self.last_check_at = tokens.copy()
        self.last_eviction_at = np.full_like(tokens, -1)

    def observe(self, query: Tensor, ranges: Sequence[Range] | None, start: np.ndarray, rope: Rope | None) -> None:
        """Show the scorers new queries [B, H, n, d], whose valid ones stand at positions start[b], ..."""
        for row, heads in enumerate(self.observed):
            queries = query[row] if ranges is None else query[row, :, slice(*ranges[row])]
            if queries.shape[1]:
                observe, first = self.evictions[row].scorer.observe, int(start[row])
                groups = zip(heads, queries.chunk(len(heads)), strict=True)
                self.observed[row] = [observe(before, group, first, rope) for before, group in groups]

    def commit(self) -> None:
        """Make what was observed so far the state to roll back to."""
        self._committed = [list(heads) for heads in self.observed]

    def rollback(self) -> None:
        """Forget what was observed since the last commit. No row was evicted since, or there is no way back."""
        self.observed = [list(heads) for heads in self._committed]

    def find_due(self, tokens: np.ndarray) -> np.ndarray:
        """[B] bool: rows that have seen `every` tokens since they were last checked."""
        return np.zeros(len(tokens), dtype=bool) if self.every is None else tokens - self.last_check_at >= self.every

    def find_changed(self, tokens: np.ndarray) -> np.ndarray:
        """[B] bool: rows that have seen a token since they were last evicted."""
        return tokens != self.last_eviction_at

    def evict(self, stored: Stored, scores: PromptScores, due: np.ndarray) -> Stored:
        """What stays of a store when the rows that are due [B] bool are evicted; the others stay as they are."""
        masks: list[Tensor | None] = []
        for row, eviction in enumerate(self.evictions):
            everything = [None] * stored.arena.heads
            masks += select_entries(self.view_heads(row, stored, scores), eviction) if due[row] else everything
        self.last_check_at = np.where(due, stored.tokens, self.last_check_at)
        self.last_eviction_at = np.where(due, stored.tokens, self.last_eviction_at)
        return stored.retain(masks)

    def view_heads(self, row: int, stored: Stored, scores: PromptScores) -> list[PromptLayer]:
        """What the scorer sees of one batch row: each KV head as a layer of its own, with its group of query heads."""
        views = []
        for head, sequence in enumerate(stored.arena.list_sequences([row])):
            keys, values = stored.arena.view_sequence(sequence)
            view = scores.view(row, keys[None], values[None], self.evictions[row].scorer)
            one = replace(view, query_heads=view.query_heads // stored.arena.heads, head=head)
            at, observed = stored.find_positions(sequence), self.observed[row][head]
            views.append(replace(one, observed=observed, positions=at, seen=int(stored.tokens[row])))
        return views

    def select_rows(self, rows: Sequence[int]) -> Reeviction:
        chosen = copy(self)
        chosen.evictions = [self.evictions[row] for row in rows]
        chosen.observed = [list(self.observed[row]) for row in rows]
        chosen._committed = [list(self._committed[row]) for row in rows]
        chosen.last_check_at = self.last_check_at[list(rows)]
        chosen.last_eviction_at = self.last_eviction_at[list(rows)]
        return chosen


def select_entries(heads: Sequence[PromptLayer], eviction: Eviction) -> list[Tensor]:
    """What an eviction keeps of one batch row: for each KV head [entries] bool.

    heads: each KV head as a layer of its own, with the positions of its entries and how many tokens the row has seen.
    """
    first = heads[0]
    positions: list[Tensor] = [head.positions for head in heads]  # type: ignore[misc]
    scores = torch.full((len(heads), first.tokens), GONE, device=first.keys.device)
    for row, head, at in zip(scores, heads, positions, strict=True):
        if len(at):
            row[at] = eviction.scorer.score(head)[0]
    held = scores != GONE
    protection = eviction.protection.over(eviction.scorer)
    # protection must not bring back what a head no longer holds, so it raises only what is there
    raised = torch.where(held, protect(scores, protection, eviction.scorer.name), scores)
    seen = HeadScores(raised, protection.mask(first.tokens, raised.device), first.index, first.layers)
    keep = select_best(raised, eviction.allocator.counts(eviction.budget, seen)) & held
    return [row[at] for row, at in zip(keep, positions, strict=True)]
