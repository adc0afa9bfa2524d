"""What one layer holds after its prompt: the kept entries, where they stood, and a state to roll back to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lukv.backend.arena import pack
from lukv.backend.format import choose_formats
from lukv.backend.prompt import Entries
from lukv.backend.quantized import AnyArena, pack_quantized

NO_STATE = "there is no state to go back to: the prompt is not in the cache yet, or it was evicted again since"


@dataclass(frozen=True)
class Snapshot:
    """A state to roll back to: columns seen, tokens seen [B], entries of each sequence [N]."""

    seen: int
    tokens: np.ndarray
    lengths: np.ndarray

    def select_rows(self, rows: Sequence[int], sequences: np.ndarray) -> Snapshot:
        return Snapshot(self.seen, self.tokens[list(rows)], self.lengths[sequences])


@dataclass(frozen=True)
class Positions:
    """Where entries stood in their row, padding not counted.

    packed [sum of lengths] int32: of the entries that the arena was made with, lengths [N] of each sequence. What a
    row appended later stands at tokens[row], tokens[row] + 1, ...
    """

    packed: Tensor
    lengths: np.ndarray
    tokens: np.ndarray

    def find(self, sequence: int, row: int, count: int) -> Tensor:
        """[count] int64: of all entries that a sequence of batch row `row` holds now."""
        end = int(self.lengths[: sequence + 1].sum())
        length, first = int(self.lengths[sequence]), int(self.tokens[row])
        appended = torch.arange(first, first + count - length, device=self.packed.device)
        return torch.cat([self.packed[end - length : end].long(), appended])

    def select_rows(self, rows: Sequence[int], sequences: np.ndarray) -> Positions:
        ends = self.lengths.cumsum()
        parts = [self.packed[ends[i] - self.lengths[i] : ends[i]] for i in sequences]
        return Positions(torch.cat(parts), self.lengths[sequences], self.tokens[list(rows)])


@dataclass
class Stored:
    """arena: keys and values. tokens [B] int64: tokens each row has seen, without padding. snapshot: None once entries
    were evicted that it would need, until the next commit."""

    arena: AnyArena
    positions: Positions
    tokens: np.ndarray
    snapshot: Snapshot | None = None

    @classmethod
    def make(cls, arena: AnyArena, packed: Tensor, tokens: np.ndarray) -> Stored:
        """packed [entries]: where the arena's entries stood; tokens [B]: what each row has seen."""
        return cls(arena, Positions(packed, arena.lengths.copy(), tokens.copy()), tokens)

    @classmethod
    def make_empty(cls, key: Tensor, value: Tensor, cache_dtype: str) -> Stored:
        """No entry yet, for rows and heads like those of key [B, K, n, d] and value [B, K, n, dv]."""
        prompt = [(k[:, :0], v[:, :0]) for k, v in zip(key, value, strict=True)]
        keep = [torch.zeros(k.shape[:2], dtype=torch.bool, device=k.device) for k, _ in prompt]
        return cls.pack(prompt, keep, np.zeros(len(key), dtype=np.int64), cache_dtype)

    @classmethod
    def pack(
        cls, prompt: Sequence[Entries], keep: Sequence[Tensor], tokens: np.ndarray, cache_dtype: str = "auto"
    ) -> Stored:
        """Store what stays (keep [K, T] bool) of the newest T of each row's `tokens` tokens, in position order."""
        keys, values = zip(*prompt, strict=True)
        formats = choose_formats(cache_dtype, keys[0].shape[-1], values[0].shape[-1])
        arena: AnyArena
        if formats is None:
            arena, packed = pack(keys, values, keep)
        else:
            arena, packed = pack_quantized(keys, values, keep, formats)
        first = tokens - [k.shape[1] for k in keys]
        if first.any():  # a sliding-window layer holds only the newest tokens
            entries = arena.lengths.reshape(arena.batch, -1).sum(1)
            packed = packed + torch.from_numpy(np.repeat(first, entries)).to(packed)
        return cls.make(arena, packed, tokens)

    @property
    def sequences(self) -> range:
        return range(len(self.arena.lengths))

    def find_positions(self, sequence: int) -> Tensor:
        """[entries] int64: where in its row each entry of a sequence stood."""
        return self.positions.find(sequence, sequence // self.arena.heads, int(self.arena.lengths[sequence]))

    def append(self, key: Tensor, value: Tensor, rows: Sequence[int] | None = None) -> None:
        """key [R, K, n, d], value [R, K, n, dv]: n new tokens of R batch rows (None: of all rows)."""
        self.arena.append(key, value, rows)
        new = np.zeros_like(self.tokens)
        new[slice(None) if rows is None else list(rows)] = key.shape[2]
        self.tokens = self.tokens + new

    def commit(self, seen: int) -> None:
        """Make the present state, after `seen` columns of input, the one to roll back to."""
        self.snapshot = Snapshot(seen, self.tokens.copy(), self.arena.lengths.copy())

    @property
    def is_whole(self) -> bool:
        """Does every head hold every token that its row has seen? Then other caches can be made of this one."""
        return bool((self.arena.lengths == np.repeat(self.tokens, self.arena.heads)).all())

    @property
    def committed(self) -> Snapshot:
        """The state to roll back to. Raises RuntimeError if there is none."""
        if self.snapshot is None:
            raise RuntimeError(NO_STATE)
        return self.snapshot

    def rollback(self) -> None:
        """Forget what was appended since the last commit. Nothing is moved."""
        snapshot = self.committed
        self.tokens = snapshot.tokens.copy()
        self.arena.truncate(snapshot.lengths)

    def view_prompt(self) -> list[Entries]:
        """Views of each row's entries as of the last commit, when its heads must have been equally long."""
        lengths = self.committed.lengths.reshape(self.arena.batch, -1)[:, 0]
        whole = [self.arena.view_row(row) for row in range(self.arena.batch)]
        return [(keys[:, :n], values[:, :n]) for (keys, values), n in zip(whole, lengths, strict=True)]

    def retain(self, masks: Sequence[Tensor | None]) -> Stored:
        """A new store of what masks[i] [entries] bool says of each sequence i (None: all of it), without snapshot."""
        arena = self.arena.retain(masks)
        positions = zip(map(self.find_positions, self.sequences), masks, strict=True)
        packed = torch.cat([at if mask is None else at[mask] for at, mask in positions]).to(torch.int32)
        return Stored.make(arena, packed, self.tokens)

    def select_rows(self, rows: Sequence[int]) -> Stored:
        """Copies of some batch rows as they are now."""
        sequences = self.arena.list_sequences(rows)
        return replace(
            self,
            arena=self.arena.copy_rows(rows),
            positions=self.positions.select_rows(rows, sequences),
            tokens=self.tokens[list(rows)],
            snapshot=self.snapshot and self.snapshot.select_rows(rows, sequences),
        )
