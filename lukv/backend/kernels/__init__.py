"""Decode kernels: attention of n new queries a KV head over the arena's sequences of different length.

A kernel is one module of this package with
    AUTO: int                    its rank in `attention=auto`, lowest first; 0: only when asked for by name
    find_problem(device, dtype, head_dim, value_dim, softcap) -> str | None     why it cannot run here, and what to do;
                                 RuntimeError where it should run and does not: "auto" says so and goes on without it
    decode(query, keys, values, start, length, longest, scale, softcap, whole) -> out

query [N, G, n, d]; keys [rows, d] and values [rows, dv] are the arena's memory; start [N] and length [N] are int32 on
the same device; longest >= max(length) is an int on the host. out [N, G, n, dv] has the query's dtype. The queries are
those of the last n entries of each sequence: query i sees all but the last n-1-i. Every length is >= n.

whole: the sequences are all those of the arena, from their first entry on. Then the rows between one and the next hold
zeros, and a kernel may read them under a mask. Otherwise they may hold anything, also NaN.

A quantized arena is decoded in tiles that are unpacked into dense memory of this form, `whole`. A kernel that is meant
for them says so: TILES = True. It may also read codes by itself, for one new token without gradients:
    decode_packed(query, packed, recent, formats, scale, softcap) -> out
Sequence i is then the rows of bytes that `packed` says, and behind them the entries that `recent` says.
"""

from __future__ import annotations

import importlib
from functools import cache
from logging import getLogger
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lukv.asked import list_kernels
from lukv.backend.format import Format


class Decode(Protocol):
    def __call__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        start: Tensor,
        length: Tensor,
        longest: int,
        scale: float,
        softcap: float | None,
        whole: bool = True,
    ) -> Tensor: ...


class Sequences(NamedTuple):
    """Sequences in an arena's memory: keys [rows, ..] and values [rows, ..]; start [N] and length [N] int32."""

    keys: Tensor
    values: Tensor
    start: Tensor
    length: Tensor


class DecodePacked(Protocol):
    def __call__(
        self,
        query: Tensor,
        packed: Sequences,
        recent: Sequences,
        formats: tuple[Format, Format],
        scale: float,
        softcap: float | None,
    ) -> Tensor: ...


def explain(device: torch.device, dtype: torch.dtype, head_dim: int = 64) -> dict[str, str]:
    """Of each kernel, and of "auto": that it runs here, or why not, in a line."""
    found = {}
    for name in ("auto", *list_kernels()):
        try:
            chosen = pick(name, device, dtype, head_dim, head_dim).name
            found[name] = "runs here" if chosen == name else f"is {chosen} here"
        except ValueError as error:
            found[name] = str(error).removeprefix(f"attention={name} ")
    return found


class Kernel(NamedTuple):
    name: str
    decode: Decode
    decode_packed: DecodePacked | None = None


@cache
def pick(
    name: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    value_dim: int,
    softcap: bool = False,
    cache_dtype: str = "auto",
) -> Kernel:
    """The kernel of this name, or with "auto" the first that can run here. Raises ValueError for one that does not
    exist or cannot run: there is no silent fallback."""
    if name not in ("auto", *list_kernels()):
        raise ValueError(f"attention={name} is not a kernel: choose one of auto, {', '.join(list_kernels())}")
    modules = {n: importlib.import_module(f"{__name__}.{n}") for n in (list_kernels() if name == "auto" else [name])}
    order = sorted((module.AUTO, n) for n, module in modules.items() if module.AUTO > 0 or name != "auto")
    for _, candidate in order:
        try:
            if cache_dtype != "auto" and not getattr(modules[candidate], "TILES", False):
                why = (
                    f"{candidate} cannot read a cache of cache_dtype={cache_dtype} (attention=loop can, on any device)"
                )
            else:
                why = modules[candidate].find_problem(device, dtype, head_dim, value_dim, softcap)
        except RuntimeError as error:
            why = str(error)
            if name == "auto":
                getLogger(__name__).warning("attention goes on without the %s kernel: %s", candidate, why)
        if why is None:
            module = modules[candidate]
            return Kernel(candidate, module.decode, getattr(module, "decode_packed", None))
        if name != "auto":
            raise ValueError(f"attention={name} cannot run here: {why}")
    raise ValueError(f"no attention kernel runs on {device} with {dtype}")
