"""Torch's own attention: one call for all sequences that lie equally far apart, one each for the others. Any device,
dtype and shape.

Equally long ones share a call as they are. For a single new token unequal ones do too, up to the longest of them and
with what is behind the others masked: exact, as the arena keeps zeros there. The arena rounds capacities, so that short
sequences, where a call costs more than its reading, share most.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from lukv.backend.dense import causal_attention, masked_attention

AUTO = 90


def problem(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: bool) -> str | None:
    return None


def decode(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    start: Tensor,
    length: Tensor,
    longest: int,
    scale: float,
    softcap: float | None,
) -> Tensor:
    n = query.shape[2]
    order, runs = strided_runs(start.tolist(), length.tolist(), len(keys), mixed=n == 1)
    there, back = permutation(tuple(order), query.device)
    if there is not None:
        query, length = query.index_select(0, there), length.index_select(0, there)
    outs, done = [], 0
    for first, size, stride, shortest, most in runs:
        q, done = query[done : done + size], done + size
        k, v = (sequences(x, first, size, stride, most) for x in (keys, values))
        if n > 1:
            outs.append(causal_attention(q.flatten(0, 1), k, v, scale, softcap).unflatten(0, q.shape[:2]))
            continue
        # the path of every generated token: the group's query heads are query rows, as if they were tokens
        q, k, v = q.transpose(1, 2), k[:, None], v[:, None]
        if shortest == most and softcap is None:
            out = sdpa(q, k, v, scale=scale)
        else:
            column = torch.arange(most, device=k.device)
            visible = (column < length[done - size : done, None])[:, None, None]
            out = masked_attention(q, k, v, visible, scale, softcap)
        outs.append(out.transpose(1, 2))
    out = torch.cat(outs) if len(outs) > 1 else outs[0]
    return out if back is None else out.index_select(0, back)


Run = tuple[int, int, int, int, int]
"""(start of the first sequence, number of sequences, rows from one start to the next, shortest, longest of them)."""


def strided_runs(start: list[int], length: list[int], rows: int, mixed: bool) -> tuple[list[int], list[Run]]:
    """The sequences in the order of memory, and the runs among them that are one strided view of a memory of so many
    rows: equally far apart, and equally long unless `mixed`. No sequence is read past the next one's start."""
    order = sorted(range(len(start)), key=start.__getitem__)
    runs: list[Run] = []
    first = size = stride = shortest = longest = 0
    for i in order:
        a, count = start[i], length[i]
        step = stride if size > 1 else a - first
        most = max(longest, count)
        fits = most <= step and a + most <= rows if mixed else shortest == count
        if size and fits and a == first + size * step:
            size, stride, shortest, longest = size + 1, step, min(shortest, count), most
        else:
            if size:
                runs.append((first, size, stride, shortest, longest))
            first, size, stride, shortest, longest = a, 1, count, count, count
    return order, [*runs, (first, size, stride, shortest, longest)]


@lru_cache(maxsize=256)  # an arena keeps its order from token to token
def permutation(order: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Indices that put sequences into this order, and back; nothing to do where they are in order."""
    if order == tuple(range(len(order))):
        return None, None
    there = torch.tensor(order, device=device)
    return there, there.argsort()


def sequences(x: Tensor, first: int, size: int, stride: int, count: int) -> Tensor:
    """x [rows, d] -> a view [size, count, d] of a run."""
    rows, columns = x.stride()
    return x.as_strided((size, count, x.shape[1]), (stride * rows, rows, columns), x.storage_offset() + first * rows)
