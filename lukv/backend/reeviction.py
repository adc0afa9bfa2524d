"""Evict again from rows that are ragged already: a second turn, a long answer, or a prompt that streams in.

After the first eviction the KV heads of a layer hold different positions. So each head is scored by itself, as a layer
of one KV head over the entries it holds. The allocator still sees all heads over all tokens seen. Tokens that a head no
longer holds have the lowest score there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lukv.allocation import HeadScores
from lukv.backend.options import Later
from lukv.backend.padding import Range
from lukv.backend.prompt import PromptScores
from lukv.backend.stored import Stored
from lukv.scoring import PromptLayer, Rope, Scorer
from lukv.selection import Eviction, protect, select_best

GONE = torch.finfo(torch.float32).min
"""The score of a token that a head no longer holds."""


NEVER = np.iinfo(np.int64).max
"""`every` of a row that is evicted only when asked."""


@dataclass(frozen=True)
class LaterEviction:
    """What one later eviction left of a row: tokens the row had seen, and the entries of each KV head, [K] int64 of one
    layer or [layers, K] of all that can be evicted."""

    tokens: int
    kept: np.ndarray


class Reeviction:
    """One layer's later evictions.

    later: what evicts each batch row; None: nothing does. every [B] int64: after how many tokens it does. observed: of
    each row, what each scorer made of the queries of each KV head's group. last_check_at [B] int64: tokens of a row
    when `every` was last counted from. last_eviction_at [B] int64: tokens of a row when it was last evicted, -1 if it
    never was. history: each row's evictions since `start`.
    """

    def __init__(self, later: Sequence[Later | None], kv_heads: int, scorers: Sequence[Scorer] = ()) -> None:
        """scorers: those that forks may ask for (`assign`), besides each row's own."""
        self._set(later)
        self.observed: list[dict[Scorer, list[Any]]] = [
            {scorer: [None] * kv_heads for scorer in (*scorers, *list_scorers(each))} for each in later
        ]
        self.commit()
        self.start(np.zeros(len(later), dtype=np.int64))

    def _set(self, later: Sequence[Later | None]) -> None:
        self.later = list(later)
        self.every = np.array([NEVER if each is None or each.every is None else each.every for each in later])

    def assign(self, later: Sequence[Later | None]) -> None:
        """Let each row be evicted by another one of these, and go on observing for it only. Raises ValueError for a
        scorer that was not shown the prompt."""
        for row, each in enumerate(later):
            if missing := [scorer.name for scorer in list_scorers(each) if scorer not in self.observed[row]]:
                raise ValueError(f"{missing[0]} is to evict later: prefill with observe_heads=[{missing[0]}]")
            self.observed[row] = {scorer: self.observed[row][scorer] for scorer in list_scorers(each)}
        self._set(later)

    def stop(self) -> None:
        """From now on evict only when asked."""
        self.every = np.full_like(self.every, NEVER)

    @property
    def is_running(self) -> bool:
        """Is a row evicted without being asked?"""
        return bool((self.every < NEVER).any())

    def start(self, tokens: np.ndarray) -> None:
        """Count from now on: the rows have seen `tokens` [B] tokens and were not evicted again yet."""
        self.last_check_at = tokens.copy()
        self.last_eviction_at = np.full_like(tokens, -1)
        self.history: list[list[LaterEviction]] = [[] for _ in tokens]

    def observe(self, query: Tensor, ranges: Sequence[Range] | None, start: np.ndarray, rope: Rope | None) -> None:
        """Show the scorers new queries [B, H, n, d], whose valid ones stand at positions start[b], ..."""
        for row, scorers in enumerate(self.observed):
            queries = query[row] if ranges is None else query[row, :, slice(*ranges[row])]
            for scorer, heads in scorers.items() if queries.shape[1] else ():
                groups = zip(heads, queries.chunk(len(heads)), strict=True)
                scorers[scorer] = [scorer.observe(before, group, int(start[row]), rope) for before, group in groups]

    def commit(self) -> None:
        """Make what was observed so far the state to roll back to."""
        self._committed = [dict(scorers) for scorers in self.observed]

    def rollback(self) -> None:
        """Forget what was observed since the last commit. No row was evicted since, or there is no way back."""
        self.observed = [dict(scorers) for scorers in self._committed]

    def find_due(self, tokens: np.ndarray) -> np.ndarray:
        """[B] bool: rows that have seen `every` tokens since they were last checked."""
        return tokens - self.last_check_at >= self.every

    def find_changed(self, tokens: np.ndarray) -> np.ndarray:
        """[B] bool: rows that have seen a token since they were last evicted."""
        return (tokens != self.last_eviction_at) & np.array([each is not None for each in self.later])

    def evict(self, stored: Stored, scores: PromptScores, due: np.ndarray) -> Stored:
        """What stays of a store when the rows that are due [B] bool are evicted; the others stay as they are."""
        masks: list[Tensor | None] = []
        for row, later in enumerate(self.later):
            if later is None or not due[row]:
                masks += [None] * stored.arena.heads
            else:
                masks += select_entries(self.view_heads(row, later, stored, scores), later.eviction)
        self.last_check_at = np.where(due, stored.tokens, self.last_check_at)
        self.last_eviction_at = np.where(due, stored.tokens, self.last_eviction_at)
        left = stored.retain(masks)
        kept = left.arena.lengths.reshape(len(due), -1)
        for number in np.flatnonzero(due):
            self.history[number].append(LaterEviction(int(stored.tokens[number]), kept[number].copy()))
        return left

    def view_heads(self, row: int, later: Later, stored: Stored, scores: PromptScores) -> list[PromptLayer]:
        """What the scorer sees of one batch row: each KV head as a layer of its own, with its group of query heads."""
        scorer = later.eviction.scorer
        views = []
        for head, sequence in enumerate(stored.arena.list_sequences([row])):
            keys, values = stored.arena.view_sequence(sequence)
            view = scores.view(row, keys[None], values[None], scorer)
            one = replace(view, query_heads=view.query_heads // stored.arena.heads, head=head)
            at, observed = stored.find_positions(sequence), self.observed[row][scorer][head]
            views.append(replace(one, observed=observed, positions=at, seen=int(stored.tokens[row])))
        return views

    def select_rows(self, rows: Sequence[int]) -> Reeviction:
        chosen = copy(self)
        chosen.later, chosen.every = [self.later[row] for row in rows], self.every[list(rows)]
        chosen.observed = [dict(self.observed[row]) for row in rows]
        chosen._committed = [dict(self._committed[row]) for row in rows]
        chosen.history = [list(self.history[row]) for row in rows]
        chosen.last_check_at = self.last_check_at[list(rows)]
        chosen.last_eviction_at = self.last_eviction_at[list(rows)]
        return chosen


def list_scorers(later: Later | None) -> list[Scorer]:
    return [] if later is None else [later.eviction.scorer]


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
