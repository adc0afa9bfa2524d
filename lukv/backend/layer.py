"""One layer of a RaggedCache: it attends over the prompt, evicts, stores what stays, and attends over that ever
after."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from lukv.backend.arena import Arena, pack
from lukv.backend.dense import causal_attention
from lukv.backend.kernels import pick
from lukv.backend.options import ATTENTION, Plan, Span
from lukv.backend.reeviction import HeadQueries, shrink
from lukv.eviction import Eviction, Ranked, Ranking
from lukv.scoring import PromptLayer, Rope, Scorer


@dataclass(frozen=True)
class Mark:
    """A state to roll back to."""

    seen: int
    tokens: np.ndarray
    lengths: np.ndarray


class RaggedLayer(CacheLayerMixin):
    """`index` counts the layers that can be evicted; a sliding-window layer (`window`) keeps its window, whatever the
    method."""

    is_compileable = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, plan: Plan, index: int, window: int | None, rope: Rope | None, guards: bool) -> None:
        """guards: check that the attention function is ours (one layer of a model does; reading a config is slow)."""
        super().__init__()
        self.plan, self.index, self.window, self.rope, self.guards = plan, index, window, rope, guards
        self.is_sliding = window is not None
        self.reset()

    def reset(self) -> None:
        self.seen = 0  # columns of input, padding included: what transformers counts positions and masks by
        self.waiting = False
        self.arena: Arena | None = None
        self.tokens = np.zeros(0, dtype=np.int64)  # [B] tokens seen, without padding
        self.collected: tuple[Tensor, Tensor] | None = None
        self.observed: list[dict[Scorer, Any]] = []
        self.ranked: list[dict[Ranking, Ranked]] = []
        self.head_queries: list[HeadQueries] = []
        self.queries: list[Tensor] = []
        self.kernel: str | None = None
        self.mark: Mark | None = None

    # ---- what transformers calls -------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.dtype, self.device, self.is_initialized = key_states.dtype, key_states.device, True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Hand the new keys and values through to the attention function, marked as ours."""
        if self.waiting or (self.guards and self.plan.config._attn_implementation != ATTENTION):
            raise RuntimeError(
                "a RaggedCache only works with its own attention function: call lukv.backend.attention."
                f"use_ragged_attention(model) first (now: {self.plan.config._attn_implementation})"
            )
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before, self.seen = self.seen, self.seen + key_states.shape[-2]
        switch = self.plan.rope_switch
        if switch is not None and 0 < before <= switch < self.seen:
            raise ValueError(
                f"the input grows past {switch} tokens, where {self.plan.config.model_type} changes its rotary "
                "factors and cached keys no longer fit: stay below, or prefill a longer prompt in one piece"
            )
        self.waiting = True
        key_states.ragged_layer = self  # type: ignore[attr-defined]
        return key_states, value_states

    def get_seq_length(self) -> int:
        return self.seen

    def get_mask_sizes(
        self, query: int | Tensor
    ) -> tuple[int, int]:  # transformers 5.2 gives the positions, later ones n
        return self.seen + (query if isinstance(query, int) else query.shape[0]), 0

    def get_max_length(self) -> int:
        return -1

    get_max_cache_shape = get_max_length  # its name in transformers 5.2

    def crop(self, *args: Any) -> None:
        raise NotImplementedError("a RaggedCache cannot be cropped: assisted decoding is not supported (rollback() is)")

    def reorder_cache(self, *args: Any) -> None:
        raise NotImplementedError("a RaggedCache cannot be reordered: beam search is not supported")

    batch_repeat_interleave = batch_select_indices = reorder_cache

    # ---- attention ---------------------------------------------------------------------------------------------------

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, valid: Tensor | None, scale: float, softcap: float | None
    ) -> Tensor:
        """query [B, H, n, d], key [B, K, n, d], value [B, K, n, dv] of n new columns, valid [B, n] bool -> [B, n, H,
        dv]."""
        self.waiting = False
        batch, _, n, _ = query.shape
        if len(self.tokens) == 0:
            self.tokens = np.zeros(batch, dtype=np.int64)
            if self.plan.later and not self.is_sliding:
                self.head_queries = [HeadQueries(self.plan.later.scorer, key.shape[1]) for _ in range(batch)]
            if self.plan.stream:
                nothing = np.zeros(batch * key.shape[1], dtype=np.int64)
                self.arena = Arena(key.new_empty(0, key.shape[-1]), value.new_empty(0, value.shape[-1]), nothing, batch)
                self.adopt(torch.empty(0, dtype=torch.int32, device=key.device))
        if batch != len(self.tokens):
            raise ValueError(f"this cache holds {len(self.tokens)} sequences, the input has {batch}")
        if self.kernel is None:
            self.kernel, self.decode = pick(
                self.plan.attention, query.device, query.dtype, query.shape[-1], value.shape[-1], softcap is not None
            )
        spans = self.plan.spans(valid)
        for row, queries in enumerate(self.head_queries):
            queries.add(query[row, :, slice(*spans[row]) if spans else slice(n)], int(self.tokens[row]), self.rope)
        if self.arena is None:
            return self._prompt(query, key, value, spans or [(0, n)] * batch, scale, softcap)
        return self._append(query, key, value, spans, scale, softcap)

    def _prompt(
        self, query: Tensor, key: Tensor, value: Tensor, spans: list[Span], scale: float, softcap: float | None
    ) -> Tensor:
        """Attention of a piece of the prompt over all pieces so far; after the last piece: evict and store."""
        if self.collected is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self.collected, (key, value), strict=True))
        batch, heads, n, _ = query.shape
        before, self.tokens = self.tokens, self.tokens + np.array([b - a for a, b in spans])
        out = query.new_zeros(batch, n, heads, value.shape[-1])
        columns = []
        for row, (a, b) in enumerate(spans):
            last = key.shape[2] - n + b
            columns.append(slice(max(0, last - int(self.tokens[row])), last))
            if a == b:
                continue
            q, k, v = query[row, :, a:b], key[row, :, columns[row]], value[row, :, columns[row]]
            out[row, a:b] = causal_attention(q, k, v, scale, softcap, self.window).transpose(0, 1)
        self._observe(query, spans, before)
        if self.seen < (self.plan.prompt_columns or self.seen):
            past = -(self.window - 1) if self.window else None
            self.collected = key[:, :, past:], value[:, :, past:]
            return out
        keys = [key[row, :, used] for row, used in enumerate(columns)]
        values = [value[row, :, used] for row, used in enumerate(columns)]
        if (self.tokens == 0).any():
            raise ValueError(f"row {int(self.tokens.argmin())} of the batch has no token")
        self.collected = None
        self.attributes = (heads, scale, softcap)
        prompt = list(zip(keys, values, strict=True))
        self.store(prompt, [self._keep(row, k, v, self.plan.eviction) for row, (k, v) in enumerate(prompt)])
        if not self.plan.observe:
            self.observed = []
        return out

    def _observe(self, query: Tensor, spans: list[Span], before: np.ndarray) -> None:
        """Show the scorers each row's queries, wherever the prompt was cut."""
        if self.is_sliding:
            return
        scorers = (*self.plan.observe, *([self.plan.eviction.scorer] if self.plan.eviction else []))
        self.observed = self.observed or [{} for _ in spans]
        for row, (a, b) in enumerate(spans):
            for scorer in dict.fromkeys(scorers):
                if a < b:
                    seen = self.observed[row].get(scorer)
                    self.observed[row][scorer] = scorer.observe(seen, query[row, :, a:b], int(before[row]), self.rope)

    def view(self, row: int, keys: Tensor, values: Tensor, scorer: Scorer) -> PromptLayer:
        """What a scorer sees of one batch row: keys [K, T, d], values [K, T, dv]."""
        heads, scale, softcap = self.attributes
        observed = self.observed[row].get(scorer) if self.observed else None
        return PromptLayer(
            self.index, self.plan.layers, keys, values, heads, scale, softcap, observed=observed, rope=self.rope
        )

    def _keep(self, row: int, keys: Tensor, values: Tensor, eviction: Eviction | None) -> Tensor:
        """[K, T] bool."""
        if self.is_sliding or eviction is None:
            keep = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)
            if self.window is not None:
                keep[:, : max(0, keys.shape[1] - self.window + 1)] = False
            return keep
        return eviction.keep(self.view(row, keys, values, eviction.scorer))

    def store(self, prompt: Sequence[tuple[Tensor, Tensor]], keep: Sequence[Tensor]) -> None:
        """Keep what stays (keep [K, T] bool) of each batch row's prompt (keys [K, T, d], values [K, T, dv]), in
        position order, and make this the state to roll back to."""
        keys, values = zip(*prompt, strict=True)
        self.arena, positions = pack(keys, values, keep)
        self.adopt(positions)

    def adopt(self, positions: Tensor) -> None:
        """Take the arena's present entries, which stood at `positions` [entries], as the state to roll back to. What is
        appended from now on stands where it comes."""
        assert self.arena is not None
        self.positions = positions
        self.packed_lengths, self.packed_tokens = self.arena.lengths.copy(), self.tokens.copy()
        self.judged_tokens = self.tokens.copy()
        self.shrunk_tokens = np.full_like(self.tokens, -1)
        self.commit()

    @property
    def prompt_tokens(self) -> np.ndarray:
        """[B] int64: tokens of each row up to the state to roll back to."""
        if self.mark is None:
            raise RuntimeError("the prompt is not in the cache yet")
        return self.mark.tokens

    def prompt(self) -> list[tuple[Tensor, Tensor]]:
        """Views of each batch row's prompt, which must be here whole: keys [K, T, d], values [K, T, dv]."""
        assert self.arena is not None
        assert self.mark is not None
        lengths = self.mark.lengths.reshape(self.arena.batch, -1)[:, 0]
        whole = [self.arena.row(row) for row in range(self.arena.batch)]
        return [(keys[:, :n], values[:, :n]) for (keys, values), n in zip(whole, lengths, strict=True)]

    def select(self, eviction: Eviction | None, observed: Sequence[Any] | None = None) -> list[Tensor]:
        """Of each batch row [K, T] bool: what `eviction` keeps of the prompt. observed: for each row what the scorer is
        to find, if that is not what it was shown."""
        prompt = self.prompt()
        if self.is_sliding or eviction is None:
            return [self._keep(row, k, v, eviction) for row, (k, v) in enumerate(prompt)]
        if observed is not None:
            views = [self.view(row, *kv, eviction.scorer) for row, kv in enumerate(prompt)]
            return [eviction.keep(replace(view, observed=o)) for view, o in zip(views, observed, strict=True)]
        self.ranked = self.ranked or [{} for _ in prompt]
        for row, (keys, values) in enumerate(prompt):
            if eviction.ranking not in self.ranked[row]:
                self.ranked[row][eviction.ranking] = eviction.rank(self.view(row, keys, values, eviction.scorer))
        return [eviction.best(ranked[eviction.ranking]) for ranked in self.ranked]

    def keeping(self, selections: Sequence[list[Tensor]], plan: Plan) -> RaggedLayer:
        """The layer as if all its rows had been prefilled once for each selection (`select`) under another plan."""
        assert self.mark is not None
        twin, times = copy(self), len(selections)
        twin.plan, twin.seen, twin.tokens, twin.queries = plan, self.mark.seen, np.tile(self.prompt_tokens, times), []
        twin.head_queries = [copy(queries) for queries in self.head_queries * times]
        twin.observed, twin.ranked = self.observed * times, []
        twin.store(self.prompt() * times, [mask for selection in selections for mask in selection])
        return twin

    def rows(self, chosen: Sequence[int], plan: Plan) -> RaggedLayer:
        """A layer with copies of some batch rows as they are now, under another plan."""
        assert self.arena is not None
        twin, some, sequences = copy(self), list(chosen), self.arena.sequences_of(chosen)
        ends = self.packed_lengths.cumsum()
        parts = [self.positions[ends[i] - self.packed_lengths[i] : ends[i]] for i in sequences]
        twin.plan, twin.positions = plan, torch.cat(parts)
        twin.packed_lengths, twin.packed_tokens = self.packed_lengths[sequences], self.packed_tokens[some]
        twin.judged_tokens, twin.shrunk_tokens = self.judged_tokens[some], self.shrunk_tokens[some]
        if self.mark is not None:
            twin.mark = Mark(self.mark.seen, self.mark.tokens[some], self.mark.lengths[sequences])
        twin.tokens, twin.arena = self.tokens[some], self.arena.take(chosen)
        twin.queries = [queries[some] for queries in self.queries]
        twin.observed = [self.observed[i] for i in chosen if self.observed]
        twin.head_queries = [copy(self.head_queries[i]) for i in chosen if self.head_queries]
        twin.ranked = []
        return twin

    def _append(
        self, query: Tensor, key: Tensor, value: Tensor, spans: list[Span] | None, scale: float, softcap: float | None
    ) -> Tensor:
        assert self.arena is not None
        batch, heads, n, _ = query.shape
        self.attributes = (heads, scale, softcap)
        if self.plan.record_queries and not self.is_sliding:
            self.queries.append(query.detach())
        if spans is None:
            self.tokens = self.tokens + n
            self.arena.append(key, value)
            out = self._decode(query, None, scale, softcap).transpose(1, 2)
        else:
            self.tokens = self.tokens + np.array([b - a for a, b in spans])
            out = query.new_zeros(batch, n, heads, value.shape[-1])
            for a, b in sorted(set(spans)):
                rows = [row for row, s in enumerate(spans) if s == (a, b)]
                if a < b:
                    self.arena.append(key[rows, :, a:b], value[rows, :, a:b], rows)
                    out[rows, a:b] = self._decode(query[rows, :, a:b], rows, scale, softcap).transpose(1, 2)
        if self.plan.every and not self.is_sliding:
            due = self.tokens - self.judged_tokens >= self.plan.every
            if due.any():
                self.evict_again(due)
        return out

    def _decode(self, query: Tensor, rows: list[int] | None, scale: float, softcap: float | None) -> Tensor:
        """query [R, H, n, d], the newest n entries of R batch rows (None: all of them) -> [R, H, n, dv]."""
        arena = self.arena
        assert arena is not None
        some, heads, n, d = query.shape
        if self.window is not None and n > 1:
            alone = [(q, *arena.row(row)) for q, row in zip(query, rows or range(some), strict=True)]
            return torch.stack([causal_attention(q, k, v, scale, softcap, self.window) for q, k, v in alone])
        start, length, longest, whole = arena.start, arena.length, arena.longest, rows is None
        if rows is not None:
            chosen = torch.from_numpy(arena.sequences_of(rows)).to(start.device)
            start, length = start[chosen], length[chosen]
        if self.window is not None and longest > self.window:
            start, length = start + (length - self.window).clamp(min=0), length.clamp(max=self.window)
            whole = False
        grouped = query.reshape(some * arena.heads, heads // arena.heads, n, d)
        out = self.decode(grouped, arena.keys, arena.values, start, length, longest, scale, softcap, whole)
        return out.reshape(some, heads, n, -1)

    # ---- after the prompt --------------------------------------------------------------------------------------------

    def commit(self) -> None:
        """Make the present state the one to roll back to."""
        assert self.arena is not None
        self.mark = Mark(self.seen, self.tokens.copy(), self.arena.lengths.copy())

    def rollback(self) -> None:
        if self.mark is None or self.arena is None:
            raise RuntimeError(
                "nothing to roll back to: the prompt was not prefilled, or the cache was evicted again since"
            )
        self.seen, self.tokens = self.mark.seen, self.mark.tokens.copy()
        self.arena.truncate(self.mark.lengths)
        self.queries = []

    def positions_of(self, sequence: int) -> Tensor:
        """[entries] int64: where in its row (padding not counted) each entry of a sequence stood."""
        assert self.arena is not None
        row = sequence // self.arena.heads
        if self.is_sliding:  # holds the newest tokens, without gaps
            newest = int(self.tokens[row])
            return torch.arange(newest - int(self.arena.lengths[sequence]), newest, device=self.positions.device)
        first, count = int(self.packed_lengths[:sequence].sum()), int(self.packed_lengths[sequence])
        appended = torch.arange(int(self.packed_tokens[row]), int(self.tokens[row]), device=self.positions.device)
        return torch.cat([self.positions[first : first + count].long(), appended])

    def evict_again(self, due: np.ndarray | None = None) -> None:
        """Apply `plan.later` to what is stored of the rows that are due (None: all that have a token they did not have
        when it was last applied). There is no way back: the state to roll back to is lost until commit()."""
        assert self.arena is not None
        judged, shrunk = self.judged_tokens, self.shrunk_tokens
        due = self.tokens != shrunk if due is None else due
        self.arena, positions = shrink(self, due)
        self.adopt(positions)
        self.judged_tokens, self.shrunk_tokens = (np.where(due, self.tokens, last) for last in (judged, shrunk))
        self.mark = None
