"""The ragged store of one layer. Every (batch row, KV head) is one sequence of its own length.

keys [rows, d] and values [rows, dv] hold all sequences, one behind the other. Sequence i = row * kv_heads + head
occupies start[i] .. start[i] + length[i] - 1. Behind it come free rows for the tokens to come, which hold zeros.

In memory the shortest sequence comes first, and each takes up a multiple of STEP rows. So many of them lie equally far
apart, and attention reads those in one call (kernels/loop.py). A full KV cache is the special case of equal lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import copy

import numpy as np
import torch
from torch import Tensor

from lukv.backend.format import Format

SLACK = 32  # free rows behind each sequence after (re)allocation, at least
STEP = 64


class Arena:
    """`start` [N] and `length` [N] are int32 on the arena's device, for the kernels. `lengths` [N] is the same as
    `length` on the host, so that no decode step waits for the device."""

    def __init__(
        self, keys: Iterable[Tensor], values: Iterable[Tensor], lengths: np.ndarray, batch: int, grows: bool = True
    ):
        """keys [n, d] and values [n, dv] in pieces, which one behind the other are the sequences without free rows
        between them. They are copied one at a time, so an iterator need not hold them all. grows: False where nothing
        will be appended, so that there are no free rows either."""
        self.batch = batch
        self._step = STEP if grows else 1
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self._room = 0
        self._place(keys, values, SLACK if grows else 0)

    @property
    def heads(self) -> int:
        return len(self.lengths) // self.batch

    @property
    def longest(self) -> int:
        return int(self.lengths.max(initial=0))

    @property
    def key_dim(self) -> int:
        return self.keys.shape[1]

    @property
    def value_dim(self) -> int:
        return self.values.shape[1]

    @property
    def device(self) -> torch.device:
        return self.keys.device

    @property
    def entry_bytes(self) -> int:
        """Bytes of one entry: one key and one value vector."""
        return self.keys.shape[1] * self.keys.element_size() + self.values.shape[1] * self.values.element_size()

    @property
    def nbytes(self) -> int:
        """Bytes allocated, free rows included."""
        return self.keys.nbytes + self.values.nbytes

    @property
    def row_nbytes(self) -> np.ndarray:
        """[B] int64: bytes of the entries of each batch row."""
        return self.lengths.reshape(self.batch, -1).sum(1) * self.entry_bytes

    def append(self, keys: Tensor, values: Tensor, rows: Sequence[int] | None = None) -> None:
        """Write n new entries behind the sequences of R batch rows (None: of all rows).

        keys [R, K, n, d], values [R, K, n, dv].
        """
        n = keys.shape[2]
        self.reserve(n)
        chosen = None if rows is None else self.list_sequences(rows)
        end = self._end if chosen is None else self._end[chosen]
        target = end if n == 1 else (end[:, None] + torch.arange(n, device=end.device)).flatten()
        self.keys.index_copy_(0, target, keys.reshape(-1, keys.shape[-1]))
        self.values.index_copy_(0, target, values.reshape(-1, values.shape[-1]))
        for counter in (self._end, self.length, self.lengths):
            if chosen is None:
                counter += n
            else:
                counter[chosen] += n
        self._room -= n

    def list_sequences(self, rows: Sequence[int]) -> np.ndarray:
        """[len(rows) * K] int64: the sequences of some batch rows."""
        return (np.asarray(rows)[:, None] * self.heads + np.arange(self.heads)).ravel()

    def reserve(self, n: int) -> None:
        """Make room for n more entries behind every sequence. Memory grows in steps, so moving it is amortised over
        many appends."""
        if n > self._room:
            self._room = int((self._capacity - self.lengths).min())
            if n > self._room:
                self._move(max(SLACK, n, self.longest // 8))

    def truncate(self, lengths: np.ndarray) -> None:
        """Forget all but the first lengths[i] entries of each sequence i. Nothing is moved."""
        freed = list_rows(self._starts + lengths, self.lengths - lengths).to(self.keys.device)
        self.keys.index_fill_(0, freed, 0)  # kernels may read free rows under a mask, and a masked NaN is still NaN
        self.values.index_fill_(0, freed, 0)
        self.lengths = lengths.copy()
        self._upload()
        self._room = int((self._capacity - self.lengths).min())

    def view_sequence(self, index: int) -> tuple[Tensor, Tensor]:
        """Views of sequence `index`: keys [length, d], values [length, dv]."""
        a, n = int(self._starts[index]), int(self.lengths[index])
        return self.keys[a : a + n], self.values[a : a + n]

    def view_row(self, row: int) -> tuple[Tensor, Tensor]:
        """Views of one batch row whose heads are equally long: keys [K, length, d], values [K, length, dv]."""
        first, heads = row * self.heads, self.heads
        lengths, capacity = self.lengths[first : first + heads], self._capacity[first : first + heads]
        if len(set(lengths)) > 1 or len(set(capacity)) > 1:
            raise ValueError(f"the heads of row {row} hold different numbers of entries: use view_sequence()")
        a, n, room = int(self._starts[first]), int(lengths[0]), int(capacity[0])
        shape = (heads, room, -1)
        return self.keys[a : a + heads * room].view(shape)[:, :n], self.values[a : a + heads * room].view(shape)[:, :n]

    def copy_rows(self, rows: Sequence[int]) -> Arena:
        """A copy of these batch rows, in this order, with as much room for tokens to come."""
        chosen = self.list_sequences(rows)
        twin = copy(self)
        twin.batch, twin.lengths, twin._starts = len(rows), self.lengths[chosen], self._starts[chosen]
        twin._move(self._room)
        return twin

    def retain(self, masks: Sequence[Tensor | None]) -> Arena:
        """A new arena of what masks[i] [length] bool says of each sequence i (None: all of it)."""
        pairs = zip(map(self.view_sequence, range(len(self.lengths))), masks, strict=True)
        kept = [pair if mask is None else (pair[0][mask], pair[1][mask]) for pair, mask in pairs]
        return join_sequences(kept, self.batch)

    def gather(self) -> tuple[Tensor, Tensor]:
        """Copies without the free rows: keys [sum of lengths, d], values [sum of lengths, dv]."""
        index = list_rows(self._starts, self.lengths).to(self.keys.device)
        return self.keys[index], self.values[index]

    def _move(self, room: int) -> None:
        """Move everything to new memory with at least `room` free rows behind every sequence."""
        entries = self.lengths.reshape(self.batch, -1).sum(1).tolist()
        old = list_rows(self._starts, self.lengths).to(self.keys.device).split(entries)
        self._place((self.keys[row] for row in old), (self.values[row] for row in old), room)

    def _place(self, keys: Iterable[Tensor], values: Iterable[Tensor], room: int) -> None:
        """Hold these, in memory with at least `room` free rows behind every sequence."""
        self._starts, self._capacity = lay_out(self.lengths, room, self._step)
        rows, total = list_rows(self._starts, self.lengths), int(self._capacity.sum())
        self.keys, self.values = fill(keys, rows, total), fill(values, rows, total)
        self._room = int((self._capacity - self.lengths).min(initial=room))
        self._upload()

    def _upload(self) -> None:
        device = self.keys.device
        self.start = torch.tensor(self._starts, dtype=torch.int32, device=device)
        self.length = torch.tensor(self.lengths, dtype=torch.int32, device=device)
        self._end = torch.tensor(self._starts + self.lengths, device=device)  # the row each sequence writes next


def lay_out(lengths: np.ndarray, room: int = 0, step: int = STEP) -> tuple[np.ndarray, np.ndarray]:
    """Where sequences [N] begin in memory, the shortest first, and how many rows each takes up: its own, at least
    `room` free ones, and as many as make a multiple of `step`."""
    capacity = -(-(lengths + room) // step) * step
    order = np.argsort(lengths, kind="stable")
    starts = np.empty_like(capacity)
    starts[order] = np.cumsum(capacity[order]) - capacity[order]
    return starts, capacity


def list_rows(starts: np.ndarray, counts: np.ndarray) -> Tensor:
    """Indices of counts[0] rows from starts[0] on, then of counts[1] rows from starts[1] on, ..."""
    offset = np.repeat(starts - (np.cumsum(counts) - counts), counts)
    return torch.from_numpy(np.arange(int(counts.sum())) + offset)


def fill(vectors: Iterable[Tensor], rows: Tensor, total: int) -> Tensor:
    """New memory [total, d] with vectors [n, d], at least one piece of them, in these rows and zeros in all others."""
    memory, done = None, 0
    for piece in vectors:
        if memory is None:
            memory, rows = piece.new_zeros(total, piece.shape[1]), rows.to(piece.device)
        memory.index_copy_(0, rows[done : done + len(piece)], piece)
        done += len(piece)
    assert memory is not None
    return memory


def pack(
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    keep: Sequence[Tensor],
    formats: tuple[Format, Format] | None = None,
) -> tuple[Arena, Tensor]:
    """Make an arena of the kept entries of each batch row b.

    keys[b] [K, T_b, d], values[b] [K, T_b, dv], keep[b] [K, T_b] bool. formats: how keys and values are packed, in an
    arena that does not grow. Returns the arena and the entries' indices along T_b: [sum of lengths] int32.
    """
    lengths = torch.cat([mask.sum(-1) for mask in keep]).cpu().numpy()
    index = [mask.nonzero(as_tuple=True) for mask in keep]

    def read(rows: Sequence[Tensor], format: Format | None) -> Iterator[Tensor]:
        for x, i in zip(rows, index, strict=True):
            yield x[i] if format is None else format.pack(x[i])

    each = formats or (None, None)
    arena = Arena(read(keys, each[0]), read(values, each[1]), lengths, len(keep), grows=formats is None)
    return arena, torch.cat([position for _, position in index]).to(torch.int32)


def join_sequences(sequences: Sequence[tuple[Tensor, Tensor]], batch: int, grows: bool = True) -> Arena:
    """Make an arena of (keys [n, d], values [n, dv]) of each sequence; n differs between them."""
    keys, values = zip(*sequences, strict=True)
    return Arena(keys, values, np.array([len(k) for k in keys]), batch, grows)
