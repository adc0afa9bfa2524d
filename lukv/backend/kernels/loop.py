"""One call of torch's own attention per sequence, the group's query heads as query rows; equally long sequences that
lie equally far apart share a call. Any device, dtype and shape."""

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
    first, count = start.tolist(), length.tolist()
    if query.shape[2] > 1 or softcap is not None:
        each = zip(query, first, count, strict=True)
        return torch.stack(
            [causal_attention(q, keys[None, a : a + n], values[None, a : a + n], scale, softcap) for q, a, n in each]
        )
    # the path of every generated token: no mask, as few calls as there can be
    rows = query.transpose(1, 2)  # [N, 1, G, d]
    outs = []
    i = 0
    while i < len(first):
        end = i + 1
        while end < len(first) and count[end] == count[i] and first[end] - first[end - 1] == first[i + 1] - first[i]:
            end += 1
        a, n = first[i], count[i]
        if end == i + 1:
            k, v = keys[None, None, a : a + n], values[None, None, a : a + n]
        else:
            step = first[i + 1] - a
            k, v = (
                x.as_strided((end - i, 1, n, x.shape[1]), (step * x.stride(0), 0, x.stride(0), 1), a * x.stride(0))
                for x in (keys, values)
            )
        outs.append(sdpa(rows[i:end], k, v, scale=scale))
        i = end
    return (outs[0] if len(outs) == 1 else torch.cat(outs)).transpose(1, 2)
