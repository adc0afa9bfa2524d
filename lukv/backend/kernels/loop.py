"""One call of torch's own attention per sequence, the group's query heads as query rows. Any device, dtype and shape."""

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
    n = query.shape[2]
    out = query.new_empty(*query.shape[:3], values.shape[-1])
    if n == 1 and softcap is None:  # one call, no mask: the path of every generated token
        rows = query.transpose(1, 2)[:, None]  # [N, 1, 1, G, d]
        for i, (a, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
            entry = slice(a, a + count)
            out[i] = sdpa(rows[i], keys[entry][None, None], values[entry][None, None], scale=scale)[0, 0][:, None]
        return out
    for i, (a, count) in enumerate(zip(start.tolist(), length.tolist(), strict=True)):
        entry = slice(a, a + count)
        out[i] = causal_attention(query[i], keys[None, entry], values[None, entry], scale, softcap)
    return out
