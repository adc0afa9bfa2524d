"""Times and shapes that several programs use."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
WORKING_SET = 2**29 if DEVICE.type == "cuda" else 2**28  # bytes to rotate over, more than any cache holds


@dataclass(frozen=True)
class Geometry:
    name: str
    query_heads: int
    kv_heads: int
    head_dim: int


TINY, LARGE = Geometry("tiny 8/4 x 32", 8, 4, 32), Geometry("8B 32/8 x 128", 32, 8, 128)


def uneven(heads: int, tokens: int, share: float) -> np.ndarray:
    """Head budgets as uneven as measured ones: from 0.25 to 1.75 of the mean, as far as there are tokens."""
    spread = min(0.75, 1 / share - 1)
    return (np.linspace(1 - spread, 1 + spread, heads) * share * tokens).astype(np.int64)


def seconds(call: Callable[[], object]) -> float:
    """Processor time on a CPU, where one thread computes: what other jobs take of the machine does not count."""
    if DEVICE.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3
    begin_s = time.process_time()
    call()
    return time.process_time() - begin_s


def in_turn(calls: Mapping[str, Callable[[int], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call(i), i the number of the round; every round runs each once, in alternating order."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        for name in list(calls)[:: 1 if i % 2 else -1]:
            times[name].append(seconds(lambda call=calls[name], i=i: call(i)))  # type: ignore[misc]
    return {name: statistics.median(found) for name, found in times.items()}


def bandwidth() -> float:
    """Bytes a second that a plain read of memory gets here; on a GPU, half of what a copy moves is read."""
    x = torch.ones(WORKING_SET // 4, device=DEVICE, dtype=torch.float32)
    y = torch.empty_like(x) if DEVICE.type == "cuda" else x
    call = (lambda: y.copy_(x)) if DEVICE.type == "cuda" else x.sum
    return (2 if DEVICE.type == "cuda" else 1) * x.nbytes / min(seconds(call) for _ in range(10))
