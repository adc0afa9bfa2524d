"""One layer's prompt while it comes in, and what scorers make of it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lukv.backend.dense import attend_causally
from lukv.backend.output import read_output
from lukv.backend.padding import Range
from lukv.backend.parameters import AttentionParameters
from lukv.scoring import PassLayer, PromptLayer, Rope, Scorer
from lukv.selection import Eviction, Ranked, Ranking

Entries = tuple[Tensor, Tensor]
"""keys [K, T, d], values [K, T, dv] of one batch row."""


class PromptBuffer:
    """The keys and values of the prompt's chunks so far. It exists until the last chunk has come.

    tokens [B] int64: tokens of each row so far, without padding. window: a sliding-window layer needs no more than the
    window's keys of earlier chunks.
    """

    def __init__(self, batch: int, window: int | None) -> None:
        self.tokens = np.zeros(batch, dtype=np.int64)
        self.window = window
        self._chunks: Entries | None = None  # [B, K, n, d], [B, K, n, dv]: all chunks so far, with padding

    @property
    def is_empty(self) -> bool:
        return self._chunks is None

    def add(self, key: Tensor, value: Tensor, ranges: Sequence[Range]) -> Entries:
        """Add one chunk: key [B, K, n, d], value [B, K, n, dv], valid columns of each row. Returns keys and values of
        everything so far that the chunk's queries can see, with padding."""
        if self._chunks is not None:
            key, value = (torch.cat(pair, dim=2) for pair in zip(self._chunks, (key, value), strict=True))
        self.tokens = self.tokens + np.array([b - a for a, b in ranges])
        past = -(self.window - 1) if self.window else None
        self._chunks = key[:, :, past:], value[:, :, past:]
        return key, value


def split_rows(key: Tensor, value: Tensor, n: int, ranges: Sequence[Range], tokens: np.ndarray) -> list[Entries]:
    """Views of what each row's last valid column sees, without padding.

    key [B, K, T, d], value [B, K, T, dv]: all columns so far, the newest n of them with these valid ranges; tokens [B]:
    how many tokens each row has by now.
    """
    rows = []
    for row, (_, b) in enumerate(ranges):
        last = key.shape[2] - n + b
        used = slice(max(0, last - int(tokens[row])), last)
        rows.append((key[row, :, used], value[row, :, used]))
    return rows


def attend_rows(
    query: Tensor, rows: Sequence[Entries], ranges: Sequence[Range], parameters: AttentionParameters, window: int | None
) -> Tensor:
    """query [B, H, n, d], of each row the keys and values up to its last valid column -> [B, n, H, dv], 0 where a
    column is padding."""
    batch, heads, n, _ = query.shape
    out = query.new_zeros(batch, n, heads, rows[0][1].shape[-1])
    for row, (a, b) in enumerate(ranges):
        if a < b:
            found = attend_causally(query[row, :, a:b], *rows[row], parameters.scale, parameters.softcap, window)
            out[row, a:b] = found.transpose(0, 1)
    return out


def keep_window(prompt: Sequence[Entries], window: int | None) -> list[Tensor]:
    """Of each row [K, T] bool: the keys that later tokens can attend to. Without a window that is all of them."""
    keep = [torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device) for keys, _ in prompt]
    if window is not None:
        for mask in keep:
            mask[:, : max(0, mask.shape[1] - window + 1)] = False
    return keep


class PromptScores:
    """What scorers see and say of each batch row's prompt in one layer.

    index: the layer's number among those that can be evicted, of which there are `layers`. questions: how many of each
    row's last tokens are the question, if that is known. `observed` is of the prompt,
    which a commit extends by what was appended. `passed` is what scorers with extra passes made of it in these, once
    they were run. `rankings` are made when they are first asked for, and then serve every eviction with the same scorer
    and protection.
    """

    def __init__(
        self,
        batch: int,
        index: int,
        layers: int,
        parameters: AttentionParameters,
        rope: Rope | None,
        questions: Sequence[int] | None = None,
    ) -> None:
        self.index, self.layers, self.parameters, self.rope = index, layers, parameters, rope
        self.questions: list[int | None] = [None] * batch if questions is None else list(questions)
        self.observed: list[dict[Scorer, Any]] = [{} for _ in range(batch)]
        self.passed: list[dict[Scorer, Any]] = [{} for _ in range(batch)]
        self.rankings: list[dict[Ranking, Ranked]] = [{} for _ in range(batch)]
        self._appended: list[tuple[Tensor, Sequence[Range], np.ndarray]] = []

    def observe(self, query: Tensor, ranges: Sequence[Range], start: np.ndarray, scorers: Sequence[Scorer]) -> None:
        """Show the scorers a chunk's queries [B, H, n, d]; row b's valid ones stand at positions start[b], ..."""
        for row, (a, b) in enumerate(ranges):
            for scorer in scorers:
                if a < b:
                    before = self.observed[row].get(scorer)
                    self.observed[row][scorer] = scorer.observe(before, query[row, :, a:b], int(start[row]), self.rope)

    def remember(self, query: Tensor, ranges: Sequence[Range], start: np.ndarray) -> None:
        """Keep a chunk's queries that come after the prompt, for the case that they are committed."""
        self._appended.append((query.detach(), ranges, start))

    def view_appended(self, row: int) -> Tensor:
        """[H, n, d]: the queries of one row that came after the prompt."""
        return torch.cat([query[row, :, slice(*ranges[row])] for query, ranges, _ in self._appended], 1)

    def begin_passes(self, scorers: Sequence[Scorer]) -> None:
        """Let the extra passes of these scorers begin, anew if they were run before."""
        for passed, observed in zip(self.passed, self.observed, strict=True):
            passed.update({scorer: observed.get(scorer) for scorer in scorers})
        self.rankings = [{} for _ in self.rankings]

    def show_pass(self, row: int, scorer: Scorer, layer: PassLayer) -> None:
        """Show a scorer an extra pass of one row."""
        self.passed[row][scorer] = scorer.observe_pass(self.passed[row][scorer], layer)

    def commit(self, scorers: Sequence[Scorer]) -> None:
        """What was appended belongs to the prompt from now on. Extra passes were about the prompt before."""
        if self._appended:
            self.passed = [{} for _ in self.passed]
            self.questions = [None for _ in self.questions]
        for query, ranges, start in self._appended:
            self.observe(query, ranges, start, scorers)
        self.rollback()
        self.rankings = [{} for _ in self.rankings]

    def rollback(self) -> None:
        """What was appended is gone."""
        self._appended = []

    def forget(self) -> None:
        """Free what was observed: no scorer will be asked again."""
        self.observed = [{} for _ in self.observed]
        self.passed = [{} for _ in self.passed]

    def view(self, row: int, keys: Tensor, values: Tensor, scorer: Scorer) -> PromptLayer:
        """What a scorer sees of one batch row: keys [K, T, d], values [K, T, dv], and what it observed."""
        p, observed = self.parameters, (self.observed[row] | self.passed[row]).get(scorer)
        output = read_output(p.output, f"layer {self.index}") if scorer.needs_output else None
        about = p.query_heads, p.scale, p.softcap, observed, self.rope, output, self.questions[row]
        return PromptLayer(self.index, self.layers, keys, values, *about)

    def keep(self, eviction: Eviction, prompt: Sequence[Entries]) -> list[Tensor]:
        """What an eviction keeps of each row: [K, T] bool. Nothing else is remembered."""
        return [eviction.keep(self.view(row, *entries, eviction.scorer)) for row, entries in enumerate(prompt)]

    def rank(self, eviction: Eviction, prompt: Sequence[Entries]) -> list[Ranked]:
        """How each row's tokens are ranked; this is remembered."""
        for row, entries in enumerate(prompt):
            if eviction.ranking not in self.rankings[row]:
                self.rankings[row][eviction.ranking] = eviction.rank(self.view(row, *entries, eviction.scorer))
        return [rankings[eviction.ranking] for rankings in self.rankings]

    def select_rows(self, rows: Sequence[int]) -> PromptScores:
        """What was observed of these rows. Rankings are made anew."""
        chosen = copy(self)
        chosen.questions = [self.questions[row] for row in rows]
        chosen.observed = [self.observed[row] for row in rows]
        chosen.passed = [dict(self.passed[row]) for row in rows]
        chosen.rankings = [{} for _ in rows]
        picked = list(rows)
        chosen._appended = [(q[picked], [r[row] for row in picked], s[picked]) for q, r, s in self._appended]
        return chosen
