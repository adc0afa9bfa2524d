"""The flash-attn package's varlen kernel (pip extra `flash`). It does what fa2 does, and has a logit soft cap."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from lukv.backend.kernels.fa2 import make_query_offsets

AUTO = 20
INSTALL = "pip install --no-build-isolation 'flash-attn>=2.8' (after torch; `make flash`)"


def find_problem(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: bool) -> str | None:
    if importlib.util.find_spec("flash_attn") is None:
        return f"the package flash-attn is not installed: {INSTALL}"
    if device.type != "cuda":
        return f"flash-attn needs a CUDA device, not {device.type} (attention=loop runs anywhere)"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"flash-attn computes in float16 or bfloat16, not {dtype} (dtype=bfloat16, or attention=triton)"
    if head_dim != value_dim or head_dim % 8 or head_dim > 256:
        return (
            f"flash-attn needs equal head dimensions, a multiple of 8 and at most 256, not {head_dim} and {value_dim}"
        )
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
    # the public varlen function does not pass seqused_k on
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    sequences, group, n, d = query.shape
    out = _flash_attn_varlen_forward(
        query.transpose(1, 2).reshape(sequences * n, group, d),
        keys[:, None],
        values[:, None],
        make_query_offsets(sequences, n, query.device),
        torch.cat([start, start[-1:]]),
        n,
        longest,
        dropout_p=0.0,
        softmax_scale=scale,
        causal=n > 1,
        softcap=softcap or 0.0,
        seqused_k=length,
    )[0]
    return out.view(sequences, n, group, -1).transpose(1, 2)
