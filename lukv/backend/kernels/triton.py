"""Split-KV attention in Triton. It takes any head dimension, a logit soft cap and float32.

The query rows of a sequence are its G query heads times n tokens. Program (i, s, r) attends from block r of sequence
i's query rows to the s-th part of its entries, with a running softmax. The parts are then combined by their
log-sum-exp.
"""

from __future__ import annotations

import importlib.util
import os

import torch
from torch import Tensor

AUTO = 30
BLOCK_KEYS = 64
PROGRAMS = 4 * 132  # enough to fill the largest GPUs a few times over


def find_problem(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: bool) -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed: pip install triton"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"triton needs a CUDA device, not {device.type} (attention=loop runs anywhere)"
    if interpreted and dtype is torch.bfloat16:
        return "Triton's interpreter computes bfloat16 products wrongly"
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        return f"triton computes in float16, bfloat16 or float32, not {dtype} (attention=loop)"
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
    import triton  # an optional package

    from lukv.backend.kernels._triton import attend_part

    sequences, group, n, d = query.shape
    dv = values.shape[1]
    rows = group * n
    block = min(64, max(16, triton.next_power_of_2(rows)))  # tl.dot wants 16 rows at least
    blocks = triton.cdiv(rows, block)
    parts = max(1, min(triton.cdiv(longest, BLOCK_KEYS), PROGRAMS // (sequences * blocks)))
    sums = torch.empty(sequences, parts, blocks * block, dv, dtype=torch.float32, device=query.device)
    top = torch.empty(sequences, parts, blocks * block, dtype=torch.float32, device=query.device)
    weight = torch.empty_like(top)
    attend_part[(sequences, parts, blocks)](
        query.contiguous(),
        keys,
        values,
        start,
        length,
        sums,
        top,
        weight,
        scale,
        softcap or 0.0,
        PARTS=parts,
        ROWS=rows,
        TOKENS=n,
        BLOCK_ROWS=block,
        BLOCK_KEYS=BLOCK_KEYS,
        HEAD_DIM=d,
        VALUE_DIM=dv,
        PADDED_HEAD_DIM=max(16, triton.next_power_of_2(d)),
        PADDED_VALUE_DIM=max(16, triton.next_power_of_2(dv)),
        SOFTCAP=softcap is not None,
    )
    share = (top - top.amax(1, keepdim=True)).exp()
    out = (share[..., None] * sums).sum(1) / (share * weight).sum(1)[..., None]
    return out[:, :rows].view(sequences, group, n, dv).to(query.dtype)
