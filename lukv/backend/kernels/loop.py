"""Torch's own attention: one call for all sequences that are equally long and lie equally far apart (the arena sees to
that), one each for the others. Any device, dtype and shape."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from lukv.backend.dense import causal_attention

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
    order, runs = equal_runs(start.tolist(), length.tolist())
    n, permuted = query.shape[2], order != list(range(len(order)))
    pieces = (query[order] if permuted else query).split([size for _, size, _, _ in runs])
    outs = []
    for q, (first, size, stride, count) in zip(pieces, runs, strict=True):
        k, v = (sequences(x, first, size, stride, count) for x in (keys, values))
        if n > 1 or softcap is not None:
            outs.append(causal_attention(q.flatten(0, 1), k, v, scale, softcap).unflatten(0, q.shape[:2]))
        else:  # the path of every generated token: no mask, the group's query heads as query rows
            outs.append(sdpa(q.transpose(1, 2), k[:, None], v[:, None], scale=scale).transpose(1, 2))
    out = torch.cat(outs)
    return torch.empty_like(out).index_copy_(0, torch.tensor(order, device=out.device), out) if permuted else out


Run = tuple[int, int, int, int]
"""(start of the first sequence, number of sequences, rows from one start to the next, their length)."""


def equal_runs(start: list[int], length: list[int]) -> tuple[list[int], list[Run]]:
    """The sequences in the order of memory, and the runs among them that are one strided view: equally long, equally
    far apart."""
    order = sorted(range(len(start)), key=start.__getitem__)
    runs: list[Run] = []
    for i in order:
        a, count = start[i], length[i]
        first, size, stride, same = runs[-1] if runs else (0, 0, 0, -1)
        if count == same and (size == 1 or a == first + size * stride):
            runs[-1] = (first, size + 1, stride if size > 1 else a - first, count)
        else:
            runs.append((a, 1, count, count))
    return order, runs


def sequences(x: Tensor, first: int, size: int, stride: int, count: int) -> Tensor:
    """x [rows, d] -> a view [size, count, d] of a run."""
    rows, columns = x.stride()
    return x.as_strided((size, count, x.shape[1]), (stride * rows, rows, columns), x.storage_offset() + first * rows)
