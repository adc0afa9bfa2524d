"""FlashAttention-2 as torch ships it. Each sequence's keys begin at start[i], and `seqused_k` says how many count."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

AUTO = 10


def find_problem(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: bool) -> str | None:
    if device.type != "cuda":
        return f"fa2 needs a CUDA device, not {device.type} (attention=loop runs anywhere)"
    if torch.cuda.get_device_capability(device)[0] < 8:
        return "fa2 needs a GPU of compute capability 8.0 or higher (attention=loop runs anywhere)"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"fa2 computes in float16 or bfloat16, not {dtype} (dtype=bfloat16, or attention=triton)"
    if head_dim != value_dim or head_dim % 8 or head_dim > 256:
        return f"fa2 needs equal head dimensions, a multiple of 8 and at most 256, not {head_dim} and {value_dim}"
    if softcap:
        return "torch's FlashAttention-2 has no logit soft cap (attention=triton or flash_attn have)"
    operator = getattr(torch.ops.aten, "_flash_attention_forward", None)
    if operator is None or not any(argument.name == "seqused_k" for argument in operator.default._schema.arguments):
        return "this torch has no FlashAttention-2 with seqused_k: pip install 'torch>=2.11'"
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
    sequences, group, n, d = query.shape
    out = torch.ops.aten._flash_attention_forward(
        query.transpose(1, 2).reshape(sequences * n, group, d),
        keys[:, None],
        values[:, None],
        make_query_offsets(sequences, n, query.device),
        torch.cat([start, start[-1:]]),  # the kernel reads the first N of N + 1 offsets when seqused_k is given
        n,
        longest,
        0.0,
        n > 1,
        False,
        scale=scale,
        seqused_k=length,
    )[0]
    return out.view(sequences, n, group, -1).transpose(1, 2)


@lru_cache(maxsize=64)
def make_query_offsets(sequences: int, n: int, device: torch.device) -> Tensor:
    """[sequences + 1] int32: where each sequence's n queries begin, and where the last ones end."""
    return torch.arange(0, (sequences + 1) * n, n, dtype=torch.int32, device=device)
