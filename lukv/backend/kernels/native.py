"""A kernel of our own for CPUs (_native.cpp): one new token over sequences of any length, in one pass over memory.

It is compiled on first use, for this processor. Several new tokens at once are attended to as `loop` does it, and so is
a token that gradients are wanted of.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from lukv.backend.kernels import _build, loop

AUTO = 40
FUNCTIONS = {torch.float32: "attend_float32", torch.bfloat16: "attend_bfloat16"}


def find_problem(device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: bool) -> str | None:
    """Compiles the kernel. Raises RuntimeError where that should succeed and does not."""
    if device.type != "cpu":
        return f"native runs on a CPU, not on {device.type} (attention=loop runs anywhere)"
    if dtype not in FUNCTIONS:
        return f"native computes in float32 or bfloat16, not {dtype} (attention=loop takes any)"
    obstacle = _build.find_obstacle()
    if obstacle is None:
        try:
            find_function(dtype)
        except OSError as error:  # no cache folder, no space, or nothing to take the threads from
            raise RuntimeError(f"the native kernel could not be stored or loaded: {error}") from error
    return obstacle


@cache
def find_function(dtype: torch.dtype) -> ctypes._FuncPointer:  # type: ignore[name-defined]
    function = _build.load()[FUNCTIONS[dtype]]
    address, long, integer, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
    function.argtypes = [address] * 6 + [long] * 3 + [integer] * 3 + [number] * 2 + [integer]
    function.restype = None
    return function


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
    if query.shape[2] > 1 or query.requires_grad:
        return loop.decode(query, keys, values, start, length, longest, scale, softcap, whole)
    if not query.dtype == keys.dtype == values.dtype:  # addresses do not say what lies there
        raise TypeError(f"a query of {query.dtype} over keys of {keys.dtype} and values of {values.dtype}")
    query, start, length = query.contiguous(), start.int().contiguous(), length.int().contiguous()
    sequences, group, _, d = query.shape
    dv = values.shape[1]
    out = query.new_empty(sequences, group, 1, dv)
    find_function(query.dtype)(
        *(x.data_ptr() for x in (query, keys, values, out, start, length)),
        *(sequences, keys.stride(0), values.stride(0)),
        *(group, d, dv),
        *(scale, softcap or 0.0),
        torch.get_num_threads(),
    )
    return out
