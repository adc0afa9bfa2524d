"""An arena whose older entries are packed in few bits (format.py). The others are in the model's dtype.

The last RECENT entries of each sequence stay as they are, and whatever is appended does: questions and answers. So a
sequence is packed entries, then recent ones, and each of the two kinds lies in an arena of its own. Kernels read it
tile by tile: some sequences at a time are unpacked into a dense arena, which is gone when their attention is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lukv.backend.arena import Arena, join_sequences, lay_out, list_rows, pack
from lukv.backend.format import Format, choose_formats

RECENT = 8
"""Entries of each sequence that are not packed. Further ones cost more bytes than they take off the error."""

TILE = 8192  # rows that are unpacked at a time, unless a single sequence has more


class Tile(NamedTuple):
    """Dense entries of some sequences, as a kernel takes them: those of an arena that holds nothing else."""

    keys: Tensor
    values: Tensor
    start: Tensor
    length: Tensor
    longest: int


class QuantizedArena:
    """What an Arena does. `packed` holds rows of bytes and never grows, `recent` is in the model's dtype."""

    def __init__(self, packed: Arena, recent: Arena, formats: tuple[Format, Format]) -> None:
        self.packed, self.recent, self.formats = packed, recent, formats

    @property
    def batch(self) -> int:
        return self.recent.batch

    @property
    def heads(self) -> int:
        return self.recent.heads

    @property
    def lengths(self) -> np.ndarray:
        return self.packed.lengths + self.recent.lengths

    @property
    def longest(self) -> int:
        return int(self.lengths.max(initial=0))

    @property
    def key_dim(self) -> int:
        return self.recent.key_dim

    @property
    def value_dim(self) -> int:
        return self.recent.value_dim

    @property
    def device(self) -> torch.device:
        return self.recent.device

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry in the model's dtype."""
        return self.recent.entry_bytes

    @property
    def nbytes(self) -> int:
        """Bytes allocated, free rows included."""
        return self.packed.nbytes + self.recent.nbytes

    @property
    def row_nbytes(self) -> np.ndarray:
        """[B] int64: bytes of the entries of each batch row, scales and zero points included."""
        return self.packed.row_nbytes + self.recent.row_nbytes

    def list_sequences(self, rows: Sequence[int]) -> np.ndarray:
        return self.recent.list_sequences(rows)

    def append(self, keys: Tensor, values: Tensor, rows: Sequence[int] | None = None) -> None:
        self.recent.append(keys, values, rows)

    def reserve(self, n: int) -> None:
        self.recent.reserve(n)

    def truncate(self, lengths: np.ndarray) -> None:
        """Forget all but the first lengths[i] entries of each sequence i, none of which is packed."""
        self.recent.truncate(lengths - self.packed.lengths)

    def copy_rows(self, rows: Sequence[int]) -> QuantizedArena:
        twin = copy(self)
        twin.packed, twin.recent = self.packed.copy_rows(rows), self.recent.copy_rows(rows)
        return twin

    def view_sequence(self, index: int) -> tuple[Tensor, Tensor]:
        """Copies of sequence `index`, unpacked: keys [length, d], values [length, dv]."""
        keys, values = (
            torch.cat([format.unpack(old, new.dtype), new])
            for format, old, new in zip(
                self.formats, self.packed.view_sequence(index), self.recent.view_sequence(index), strict=True
            )
        )
        return keys, values

    def view_row(self, row: int) -> tuple[Tensor, Tensor]:
        """Copies of one batch row whose heads are equally long: keys [K, length, d], values [K, length, dv]."""
        sequences = self.list_sequences([row])
        if len(set(self.lengths[sequences])) > 1:
            raise ValueError(f"the heads of row {row} hold different numbers of entries: use view_sequence()")
        keys, values = zip(*map(self.view_sequence, sequences.tolist()), strict=True)
        return torch.stack(keys), torch.stack(values)

    def retain(self, masks: Sequence[Tensor | None]) -> QuantizedArena:
        """A new arena of what masks[i] [length] bool says of each sequence i (None: it stays as it is).

        What is packed keeps its codes. Of the others all but the last RECENT are packed now.
        """
        packed, recent = [], []
        for index, mask in enumerate(masks):
            old, new = self.packed.view_sequence(index), self.recent.view_sequence(index)
            if mask is not None:
                older, newer = mask.split([len(old[0]), len(new[0])])
                edge = max(0, int(newer.sum()) - RECENT)
                kept = new[0][newer], new[1][newer]
                aged = [format.pack(x[:edge]) for format, x in zip(self.formats, kept, strict=True)]
                old = torch.cat([old[0][older], aged[0]]), torch.cat([old[1][older], aged[1]])
                new = kept[0][edge:], kept[1][edge:]
            packed.append(old)
            recent.append(new)
        parts = join_sequences(packed, self.batch, grows=False), join_sequences(recent, self.batch)
        return QuantizedArena(*parts, self.formats)

    def cut(self, sequences: np.ndarray) -> Iterator[slice]:
        """Slices of `sequences` whose entries are a tile: at most TILE rows, or one sequence."""
        first, rows = 0, 0
        for i, length in enumerate(self.lengths[sequences].tolist()):
            if i > first and rows + length > TILE:
                yield slice(first, i)
                first, rows = i, 0
            rows += length
        yield slice(first, len(sequences))

    def read(self, sequences: np.ndarray) -> Tile:
        """The entries of some sequences, unpacked. Between them are zeros."""
        old, new = self.packed.lengths[sequences], self.recent.lengths[sequences]
        starts, capacity = lay_out(old + new)
        device = self.device
        there = [list_rows(starts, old).to(device), list_rows(starts + old, new).to(device)]
        here = [
            list_rows(arena._starts[sequences], count).to(device)
            for arena, count in ((self.packed, old), (self.recent, new))
        ]
        dense = []
        for format, packed, recent in zip(
            self.formats, (self.packed.keys, self.packed.values), (self.recent.keys, self.recent.values), strict=True
        ):
            memory = recent.new_zeros(int(capacity.sum()), format.dim)
            memory.index_copy_(0, there[0], format.unpack(packed[here[0]], recent.dtype))
            memory.index_copy_(0, there[1], recent[here[1]])
            dense.append(memory)
        start, length = (torch.tensor(x, dtype=torch.int32, device=device) for x in (starts, old + new))
        return Tile(dense[0], dense[1], start, length, int((old + new).max()))


AnyArena = Arena | QuantizedArena


def pack_quantized(
    keys: Sequence[Tensor], values: Sequence[Tensor], keep: Sequence[Tensor], formats: tuple[Format, Format]
) -> tuple[QuantizedArena, Tensor]:
    """As `pack`: an arena of the kept entries of each batch row b, and their indices along T_b."""
    newest = [mask & (mask.flip(-1).cumsum(-1).flip(-1) <= RECENT) for mask in keep]
    older = [mask & ~new for mask, new in zip(keep, newest, strict=True)]
    packed, _ = pack(keys, values, older, formats)
    recent, _ = pack(keys, values, newest)
    positions = torch.cat([mask.nonzero(as_tuple=True)[1] for mask in keep]).to(torch.int32)
    return QuantizedArena(packed, recent, formats), positions


class Part(NamedTuple):
    """A part of an arena as it is saved: keys [entries, ..] and values [entries, ..] of all sequences, one behind the
    other; lengths [N] int64 of each."""

    keys: Tensor
    values: Tensor
    lengths: np.ndarray


def list_parts(arena: AnyArena) -> list[Part]:
    """What `build_arena` makes this arena of again: its recent entries, then the packed ones if it has any."""
    arenas = [arena.recent, arena.packed] if isinstance(arena, QuantizedArena) else [arena]
    return [Part(*each.gather(), each.lengths.copy()) for each in arenas]


def build_arena(parts: Sequence[Part], batch: int, cache_dtype: str, device: torch.device) -> AnyArena:
    keys, values, lengths = parts[0]
    recent = Arena([keys.to(device)], [values.to(device)], lengths, batch)
    formats = choose_formats(cache_dtype, keys.shape[1], values.shape[1])
    if formats is None:
        return recent
    keys, values, lengths = parts[1]
    packed = Arena([keys.to(device)], [values.to(device)], lengths, batch, grows=False)
    return QuantizedArena(packed, recent, formats)
