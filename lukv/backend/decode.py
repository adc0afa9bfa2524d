"""Attention of new tokens over a ragged arena, by one of the decode kernels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lukv.backend.dense import attend_causally
from lukv.backend.kernels import Decode
from lukv.backend.parameters import AttentionParameters
from lukv.backend.quantized import AnyArena, QuantizedArena


def attend_arena(
    decode: Decode,
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
        sequences = np.arange(len(grouped)) if rows is None else arena.list_sequences(rows)
        tiles = [(part, arena.read(sequences[part])) for part in arena.cut(sequences)]
        outs = [decode(grouped[part], *tile, scale, softcap) for part, tile in tiles]
        return torch.cat(outs).reshape(some, heads, n, -1)
    if window is not None and n > 1:
        each = [(q, *arena.view_row(row)) for q, row in zip(query, rows or range(some), strict=True)]
        return torch.stack([attend_causally(q, k, v, scale, softcap, window) for q, k, v in each])
    start, length, longest, whole = arena.start, arena.length, arena.longest, rows is None
    if rows is not None:
        chosen = torch.from_numpy(arena.list_sequences(rows)).to(start.device)
        start, length = start[chosen], length[chosen]
    if window is not None and longest > window:
        start, length = start + (length - window).clamp(min=0), length.clamp(max=window)
        whole = False
    out = decode(grouped, arena.keys, arena.values, start, length, longest, scale, softcap, whole)
    return out.reshape(some, heads, n, -1)
