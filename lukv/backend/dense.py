"""Causal attention over one sequence's dense keys and values, as in a prefill. T x T logits never exist."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

BLOCK = 512  # query rows at a time where a mask is needed: scratch is BLOCK x T


def attend_causally(
    query: Tensor, key: Tensor, value: Tensor, scale: float, softcap: float | None = None, window: int | None = None
) -> Tensor:
    """query [H, n, d], key [K, T, d], value [K, T, dv] -> [H, n, dv]. The queries are those of the last n <= T keys.

    window: each query sees that many keys, its own included. softcap: logits become softcap * tanh(logits / softcap).
    """
    heads, n, _ = query.shape
    kv_heads, tokens, _ = key.shape
    # one batch entry a KV head; the heads of its group share the keys through a stride of 0, so nothing is copied
    q = query.reshape(kv_heads, heads // kv_heads, n, -1)
    k = key[:, None].expand(-1, q.shape[1], -1, -1)
    v = value[:, None].expand(-1, q.shape[1], -1, -1)
    if window is not None and tokens <= window:
        window = None
    if softcap is None and window is None and n in (1, tokens):
        return sdpa(q, k, v, scale=scale, is_causal=n > 1).reshape(heads, n, -1)
    out = query.new_empty(kv_heads, q.shape[1], n, value.shape[-1])
    for a in range(0, n, BLOCK):
        b = min(a + BLOCK, n)
        first, last = tokens - n + a, tokens - n + b  # key positions of the block's queries
        lo = 0 if window is None else max(0, first - window + 1)
        row = torch.arange(first, last, device=query.device)[:, None]
        column = torch.arange(lo, last, device=query.device)
        visible = column <= row
        if window is not None:
            visible &= column > row - window
        out[:, :, a:b] = attend_masked(q[:, :, a:b], k[:, :, lo:last], v[:, :, lo:last], visible, scale, softcap)
    return out.view(heads, n, -1)


def attend_masked(q: Tensor, k: Tensor, v: Tensor, visible: Tensor, scale: float, softcap: float | None) -> Tensor:
    """q [.., n, d], k [.., T, d], v [.., T, dv] -> [.., n, dv]. visible [n, T] bool: at least one True in each row."""
    if softcap is None:
        return sdpa(q, k, v, attn_mask=visible, scale=scale)
    logits = softcap * torch.tanh(q @ k.transpose(-1, -2) * (scale / softcap))
    weights = logits.float() if q.dtype in (torch.float16, torch.bfloat16) else logits
    return weights.masked_fill(~visible, float("-inf")).softmax(-1).to(v.dtype) @ v
