"""A kernel of our own for CPUs (_native.cpp): one new token over sequences of any length, in one pass over memory.

It is compiled on first use, for this processor. It reads numbers, and entries in few bits as format.py packs them.
Several new tokens at once are attended to as `loop` does it, and so is a token that gradients are wanted of.
"""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from lukv.backend.format import Format
from lukv.backend.kernels import Sequences, _build, loop

AUTO = 40
TILES = True
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


class Memory(ctypes.Structure):
    """As _native.cpp has it: where keys or values lie and how they are packed. bits 0: they are not."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("stride", ctypes.c_int64),
        ("bits", ctypes.c_int32),
        ("groups", ctypes.c_int32),
    )


class Part(ctypes.Structure):
    _fields_ = (("keys", Memory), ("values", Memory), ("start", ctypes.c_void_p), ("length", ctypes.c_void_p))


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
    return attend(query, [(Sequences(keys, values, start, length), None)], values.shape[1], scale, softcap)


def decode_packed(
    query: Tensor,
    packed: Sequences,
    recent: Sequences,
    formats: tuple[Format, Format],
    scale: float,
    softcap: float | None,
) -> Tensor:
    return attend(query, [(packed, formats), (recent, None)], recent.values.shape[1], scale, softcap)


def attend(
    query: Tensor,
    parts: list[tuple[Sequences, tuple[Format, Format] | None]],
    value_dim: int,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """query [N, G, 1, d] -> [N, G, 1, value_dim]. A sequence is what its parts hold, one behind the other; each comes
    with the formats of its keys and values, None if they are numbers."""
    query = query.contiguous()
    parts = [(each._replace(start=ready(each.start), length=ready(each.length)), formats) for each, formats in parts]
    array = (Part * len(parts))(*(describe(query.dtype, *part) for part in parts))
    sequences, group, _, d = query.shape
    out = query.new_empty(sequences, group, 1, value_dim)
    find_function(query.dtype)(
        *(query.data_ptr(), out.data_ptr(), array),
        *(len(array), sequences, group, d, value_dim),
        *(scale, softcap or 0.0),
        torch.get_num_threads(),
    )
    return out


def ready(index: Tensor) -> Tensor:
    return index.int().contiguous()


def describe(dtype: torch.dtype, part: Sequences, formats: tuple[Format, Format] | None) -> Part:
    """Raises TypeError for other numbers than the query's: addresses do not say what lies there."""
    keys, values = part.keys, part.values
    wanted = dtype if formats is None else torch.uint8
    if not keys.dtype == values.dtype == wanted:
        raise TypeError(f"a query of {dtype} over keys of {keys.dtype} and values of {values.dtype}")
    memory = [
        Memory(x.data_ptr(), x.stride(0) * x.element_size(), *((0, 0) if form is None else (form.bits, form.groups)))
        for x, form in zip((keys, values), formats or (None, None), strict=True)
    ]
    return Part(*memory, part.start.data_ptr(), part.length.data_ptr())
