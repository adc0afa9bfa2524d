"""Attention of new tokens over a ragged arena, by one of the decode kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lukv.backend.arena import Arena
from lukv.backend.dense import attend_causally
from lukv.backend.kernels import Kernel, Sequences
from lukv.backend.parameters import AttentionParameters
from lukv.backend.quantized import AnyArena, QuantizedArena


def attend_arena(
    kernel: Kernel,
    query: Tensor,
    arena: AnyArena,
    parameters: AttentionParameters,
    rows: list[int] | None = None,
    window: int | None = None,
) -> Tensor:
    """query [R, H, n, d]: the newest n entries of R batch rows (None: of all rows) -> [R, H, n, dv].

    window: each query sees only that many of the newest entries up to its own.
    """
    scale, softcap = parameters.scale, parameters.softcap
    some, heads, n, d = query.shape
    grouped = query.reshape(some * arena.heads, heads // arena.heads, n, d)
    if isinstance(arena, QuantizedArena):  # never of a sliding-window layer
        return attend_quantized(kernel, grouped, arena, parameters, rows).reshape(some, heads, n, -1)
    if window is not None and n > 1:
        each = [(q, *arena.view_row(row)) for q, row in zip(query, rows or range(some), strict=True)]
        return torch.stack([attend_causally(q, k, v, scale, softcap, window) for q, k, v in each])
    (keys, values, start, length), longest, whole = locate(arena, rows), arena.longest, rows is None
    if window is not None and longest > window:
        start, length = start + (length - window).clamp(min=0), length.clamp(max=window)
        whole = False
    out = kernel.decode(grouped, keys, values, start, length, longest, scale, softcap, whole)
    return out.reshape(some, heads, n, -1)


def attend_quantized(
    kernel: Kernel, query: Tensor, arena: QuantizedArena, parameters: AttentionParameters, rows: list[int] | None
) -> Tensor:
    """query [N, G, n, d] -> [N, G, n, dv]: codes are read by the kernel if it can, otherwise unpacked tile by tile."""
    scale, softcap = parameters.scale, parameters.softcap
    if kernel.decode_packed is not None and query.shape[2] == 1 and not query.requires_grad:
        packed, recent = (locate(part, rows) for part in (arena.packed, arena.recent))
        return kernel.decode_packed(query, packed, recent, arena.formats, scale, softcap)
    sequences = np.arange(len(query)) if rows is None else arena.list_sequences(rows)
    tiles = [(part, arena.read(sequences[part])) for part in arena.cut(sequences)]
    return torch.cat([kernel.decode(query[part], *tile, scale, softcap) for part, tile in tiles])


def locate(arena: Arena, rows: list[int] | None) -> Sequences:
    """The sequences of some batch rows (None: of all)."""
    start, length = arena.start, arena.length
    if rows is not None:
        chosen = torch.from_numpy(arena.list_sequences(rows)).to(start.device)
        start, length = start[chosen], length[chosen]
    return Sequences(arena.keys, arena.values, start, length)
