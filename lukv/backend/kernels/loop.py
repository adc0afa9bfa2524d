"""One call of torch's own attention per sequence, the group's query heads as query rows. Any device, dtype and
shape."""

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
    sequences = [(a, a + count) for a, count in zip(start.tolist(), length.tolist(), strict=True)]
    if query.shape[2] > 1 or softcap is not None:
        each = zip(query, sequences, strict=True)
        return torch.stack(
            [causal_attention(q, keys[None, a:b], values[None, a:b], scale, softcap) for q, (a, b) in each]
        )
    # the path of every generated token: no mask, as few calls as there can be
    keys, values = keys[None, None], values[None, None]
    rows = query.transpose(1, 2)[:, None].unbind()  # each [1, 1, G, d]
    outs = [sdpa(q, keys[:, :, a:b], values[:, :, a:b], scale=scale) for q, (a, b) in zip(rows, sequences, strict=True)]
    return torch.cat(outs).transpose(1, 2)
