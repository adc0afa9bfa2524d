"""Torch's own attention: one call for all sequences that are equally long and lie equally far apart, one each for the
others. Any device, dtype and shape.

Of a single new token, short ones share a call even if they are not equally long: up to the longest of them, with what
is behind the others masked. That is exact where the arena keeps zeros there (`whole`); a masked NaN would not be 0.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from lukv.backend.dense import causal_attention, masked_attention

AUTO = 90
SHORT = 1024  # entries below which a call of its own costs more than a mask (docs/benchmarks.md, "What was tried")


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
    whole: bool = True,
) -> Tensor:
    n = query.shape[2]
    order, runs = equal_runs(start.tolist(), length.tolist())
    if n == 1 and whole:
        runs = joined(runs, len(keys))
    there, back = permutation(tuple(order), query.device)
    if there is not None:
        query, length = query.index_select(0, there), length.index_select(0, there)
    # a single token's query heads of a group are rows, as if they were tokens: [N, 1, G, d]
    rows, outs, done = query.transpose(1, 2) if n == 1 else query, [], 0
    for first, size, stride, shortest, most in runs:
        q, done = rows[done : done + size], done + size
        k, v = (sequences(x, first, size, stride, most) for x in (keys, values))
        if n > 1:
            outs.append(causal_attention(q.flatten(0, 1), k[:, 0], v[:, 0], scale, softcap).unflatten(0, q.shape[:2]))
        elif shortest == most and softcap is None:  # the path of every generated token
            outs.append(sdpa(q, k, v, scale=scale))
        else:
            column = torch.arange(most, device=k.device)
            visible = (column < length[done - size : done, None])[:, None, None]
            outs.append(masked_attention(q, k, v, visible, scale, softcap))
    out = torch.cat(outs) if len(outs) > 1 else outs[0]
    out = out if back is None else out.index_select(0, back)
    return out.transpose(1, 2) if n == 1 else out


Run = tuple[int, int, int, int, int]
"""(start of the first sequence, number of sequences, rows from one start to the next, shortest, longest of them)."""


def equal_runs(start: list[int], length: list[int]) -> tuple[list[int], list[Run]]:
    """The sequences in the order of memory, and the runs among them that are one strided view: equally long, equally
    far apart."""
    order = sorted(range(len(start)), key=start.__getitem__)
    runs: list[Run] = []
    for i in order:
        a, count = start[i], length[i]
        first, size, stride, same, _ = runs[-1] if runs else (0, 0, 0, -1, -1)
        if count == same and (size == 1 or a == first + size * stride):
            runs[-1] = (first, size + 1, stride if size > 1 else a - first, count, count)
        else:
            runs.append((a, 1, count, count, count))
    return order, runs


def joined(runs: list[Run], rows: int) -> list[Run]:
    """Short runs put together where all their sequences lie equally far apart and none, read as far as the longest,
    reaches into the next one or past the memory's `rows`."""
    result: list[Run] = []
    for run in runs:
        first, size, stride, _, longest = run
        if result and size * longest < SHORT:
            a, n, step, low, high = result[-1]
            step = step if n > 1 else first - a
            most = max(high, longest)
            even = first == a + n * step and (size == 1 or stride == step)
            if even and (low < high or n * high < SHORT) and most <= step and first + (size - 1) * step + most <= rows:
                result[-1] = (a, n + size, step, min(low, longest), most)
                continue
        result.append(run)
    return result


@lru_cache(maxsize=256)  # an arena keeps its order from token to token
def permutation(order: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Indices that put sequences into this order, and back; nothing to do where they are in order."""
    if order == tuple(range(len(order))):
        return None, None
    there = torch.tensor(order, device=device)
    return there, there.argsort()


def sequences(x: Tensor, first: int, size: int, stride: int, count: int) -> Tensor:
    """x [rows, d] -> a view [size, 1, count, d] of a run."""
    row, column = x.stride()
    shape, strides = (size, 1, count, x.shape[1]), (stride * row, row, row, column)
    return x.as_strided(shape, strides, x.storage_offset() + first * row)
