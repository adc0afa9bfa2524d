"""Dense float64 attention with -inf: slow and obvious. Every other kernel is checked against it."""

from __future__ import annotations

import torch
from torch import Tensor

AUTO = 0
TILES = True


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
    column = torch.arange(int(length.max()), device=keys.device)
    rows = (start[:, None] + column).clamp(max=keys.shape[0] - 1)  # [N, longest]
    last = length[:, None] - n + torch.arange(n, device=keys.device)  # [N, n]: the last entry each query sees
    visible = column <= last[:, :, None]
    logits = query.double() @ keys[rows].double().transpose(-1, -2)[:, None] * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    weights = logits.masked_fill(~visible[:, None], float("-inf")).softmax(-1)
    # rows past a sequence's end may hold NaN, and 0 * NaN is NaN
    dense = values[rows].double().masked_fill((column >= length[:, None])[..., None], 0.0)
    return (weights @ dense[:, None]).to(query.dtype)
