"""A kernel of our own for CPUs (_native.cpp): one new token over sequences of any length, in one pass over memory.

It is compiled on first use, for this processor. It reads numbers, and entries in few bits as format.py packs them.
Several new tokens at once are attended to as `loop` does it, and so is a token that gradients are wanted of.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache

import torch
from torch import Tensor

from lukv.backend.format import Format
from lukv.backend.kernels import Sequences, _build, loop

AUTO = 40
TILES = True
PART = struct.Struct("10q")
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
    function.argtypes = [address] * 3 + [integer, long] + [integer] * 3 + [number] * 2 + [integer]
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
    start, length = start.int().contiguous(), length.int().contiguous()
    part = describe(query.dtype, Sequences(keys, values, start, length))
    return attend(query, part, values.shape[1], scale, softcap)


def decode_packed(
    query: Tensor,
    packed: Sequences,
    recent: Sequences,
    formats: tuple[Format, Format],
    scale: float,
    softcap: float | None,
) -> Tensor:
    parts = describe(torch.uint8, packed, *formats) + describe(query.dtype, recent)
    return attend(query, parts, recent.values.shape[1], scale, softcap)


def describe(
    dtype: torch.dtype, part: Sequences, keys_are: Format | None = None, values_are: Format | None = None
) -> bytes:
    """What _native.cpp calls a Part. Raises TypeError for another dtype: addresses do not say what lies there."""
    keys, values, start, length = part
    if not keys.dtype == values.dtype == dtype:
        raise TypeError(f"keys of {keys.dtype} and values of {values.dtype} where the kernel reads {dtype}")
    size = dtype.itemsize
    return PART.pack(
        *(keys.data_ptr(), keys.stride(0) * size, *describe_format(keys_are)),
        *(values.data_ptr(), values.stride(0) * size, *describe_format(values_are)),
        *(start.data_ptr(), length.data_ptr()),
    )


def describe_format(format: Format | None) -> tuple[int, int]:
    return (0, 0) if format is None else (format.bits, format.groups)


def attend(query: Tensor, parts: bytes, value_dim: int, scale: float, softcap: float | None) -> Tensor:
    """query [N, G, 1, d] -> [N, G, 1, value_dim]. A sequence is what its parts hold, one behind the other."""
    query = query.contiguous()
    sequences, group, _, d = query.shape
    out = query.new_empty(sequences, group, 1, value_dim)
    find_function(query.dtype)(
        *(query.data_ptr(), out.data_ptr(), parts),
        *(len(parts) // PART.size, sequences, group, d, value_dim),
        *(scale, softcap or 0.0),
        torch.get_num_threads(),
    )
    return out
