"""Causal attention for training on a CPU, in blocks of queries. Probabilities are kept for the backward pass.

PyTorch's own CPU kernel takes two to four times as long for forward and backward together, at these sizes (bfloat16,
head size 32, up to 512 tokens). Memory is half of [heads, T, T], which is fine for short rows. Inference uses the
attention that transformers chooses.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

NAME = "blocked_training"


class BlockedAttention(torch.autograd.Function):
    """softmax(q k' / sqrt(d)) v under a causal mask; q, k, v [n, T, d] -> [n, T, d]."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        length, block = q.shape[1], 64 if q.shape[1] <= 256 else 128
        q = q * q.shape[2] ** -0.5
        future = torch.full((block, block), float("-inf"), dtype=q.dtype, device=q.device).triu(1)
        out, blocks = torch.empty_like(q), []
        for start in range(0, length, block):
            end = min(start + block, length)
            scores = torch.bmm(q[:, start:end], k[:, :end].mT)
            scores[:, :, start:] += future[: end - start, : end - start]
            blocks.append(torch.softmax(scores, -1))
            out[:, start:end] = torch.bmm(blocks[-1], v[:, :end])
        ctx.block = block
        ctx.save_for_backward(q, k, v, out, *blocks)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, *blocks = ctx.saved_tensors
        grad = grad.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        inner = (grad * out).sum(-1, keepdim=True)
        for index, probabilities in enumerate(blocks):
            start = index * ctx.block
            end = start + probabilities.shape[1]
            dv[:, :end] += torch.bmm(probabilities.mT, grad[:, start:end])
            scores = torch.bmm(grad[:, start:end], v[:, :end].mT).sub_(inner[:, start:end]).mul_(probabilities)
            dq[:, start:end] = torch.bmm(scores, k[:, :end])
            dk[:, :end] += torch.bmm(scores.mT, q[:, start:end])
        return dq * q.shape[2] ** -0.5, dk, dv


def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, **_) -> tuple[Tensor, None]:
    """query [B, H, T, d], key and value [B, K, T, d] -> [B, T, H, d]: transformers' signature. Unpadded rows only."""
    batch, heads, length, size = query.shape  # under autocast rotary embedding has left query and key in float32
    key, value = (x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))
    out = BlockedAttention.apply(*(x.to(value.dtype).reshape(batch * heads, length, size) for x in (query, key, value)))
    return out.view(batch, heads, length, size).transpose(1, 2), None


AttentionInterface.register(NAME, attend)
