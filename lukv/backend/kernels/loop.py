"""Torch's own attention, on any device, in any dtype and shape.

Sequences that are equally long and lie equally far apart in memory share one call; the others have one each.

With a single new token, short sequences share a call even if they are not equally long: each is read as far as the
longest of them, and what is behind the others is masked. That is exact where the arena holds zeros there (`whole`). A
masked NaN would still give NaN.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from lukv.backend.dense import attend_causally, attend_masked

AUTO = 90
TILES = True
SHORT = 1024  # entries: below this a call costs more than a mask (docs/benchmarks.md, "What was tried")


def find_problem(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: bool) -> str | None:
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
    order, runs = find_runs(start.tolist(), length.tolist())
    if n == 1 and whole:
        runs = join_runs(runs, len(keys))
    there, back = find_permutation(tuple(order), query.device)
    if there is not None:
        query, length = query.index_select(0, there), length.index_select(0, there)
    # with a single token, the query heads of a group are the rows: [N, 1, G, d]
    rows, outs, done = query.transpose(1, 2) if n == 1 else query, [], 0
    for first, size, stride, shortest, most in runs:
        q, done = rows[done : done + size], done + size
        k, v = (view_run(x, first, size, stride, most) for x in (keys, values))
        if n > 1:
            outs.append(attend_causally(q.flatten(0, 1), k[:, 0], v[:, 0], scale, softcap).unflatten(0, q.shape[:2]))
        elif shortest == most and softcap is None:  # the path of every generated token
            outs.append(sdpa(q, k, v, scale=scale))
        else:
            column = torch.arange(most, device=k.device)
            visible = (column < length[done - size : done, None])[:, None, None]
            outs.append(attend_masked(q, k, v, visible, scale, softcap))
    out = torch.cat(outs) if len(outs) > 1 else outs[0]
    out = out if back is None else out.index_select(0, back)
    return out.transpose(1, 2) if n == 1 else out


Run = tuple[int, int, int, int, int]
"""(start of the first sequence, number of sequences, rows from one start to the next, shortest, longest of them)."""


def find_runs(start: list[int], length: list[int]) -> tuple[list[int], list[Run]]:
    """The sequences in the order of memory, and their runs. A run is one strided view: its sequences are equally long
    and lie equally far apart."""
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


def join_runs(runs: list[Run], rows: int) -> list[Run]:
    """Join short runs whose sequences all lie equally far apart. Read as far as the longest of them, no sequence may
    reach into the next one, or past the memory's `rows`."""
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
def find_permutation(order: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor] | tuple[None, None]:
    """Indices that put sequences into this order, and those that put them back. None, None: they are in order."""
    if order == tuple(range(len(order))):
        return None, None
    there = torch.tensor(order, device=device)
    return there, there.argsort()


def view_run(x: Tensor, first: int, size: int, stride: int, count: int) -> Tensor:
    """x [rows, d] -> a view [size, 1, count, d] of a run."""
    row, column = x.stride()
    shape, strides = (size, 1, count, x.shape[1]), (stride * row, row, row, column)
    return x.as_strided(shape, strides, x.storage_offset() + first * row)
