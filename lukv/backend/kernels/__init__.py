"""Decode kernels: attention of n new queries a KV head over the arena's sequences of different length.

A kernel is one module of this package with
    AUTO: int                    its place in `attention=auto`, lowest first; 0: only when asked for by name
    problem(device, dtype, head_dim, value_dim, softcap) -> str | None      why it cannot run here, and what to do
    decode(query, keys, values, start, length, longest, scale, softcap, whole) -> out
where query [N, G, n, d]; keys [rows, d], values [rows, dv] (the arena); start, length [N] int32 on the arena's device;
longest: int >= max(length); out [N, G, n, dv] in the query's dtype. The queries are the last n entries of each
sequence: query i sees all but the last n-1-i. Every length is >= n. whole: these are all sequences of the arena from
their first entry on, so that behind each come zeros, if anything, up to the next. Otherwise what is between them may be
anything, NaN too.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Protocol

import torch
from torch import Tensor


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


def names() -> list[str]:
    """Every kernel there is a module for (those that begin with _ are parts of others)."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


@cache
def pick(
    name: str, device: torch.device, dtype: torch.dtype, head_dim: int, value_dim: int, softcap: bool = False
) -> tuple[str, Decode]:
    """(name, decode) of the kernel asked for, or with "auto" of the first that can run here. Raises ValueError for one
    that does not exist or cannot run: there is no silent fallback."""
    if name not in ("auto", *names()):
        raise ValueError(f"attention={name} is not a kernel: choose one of auto, {', '.join(names())}")
    modules = {n: importlib.import_module(f"{__name__}.{n}") for n in (names() if name == "auto" else [name])}
    order = sorted((module.AUTO, n) for n, module in modules.items() if module.AUTO > 0 or name != "auto")
    for _, candidate in order:
        why = modules[candidate].problem(device, dtype, head_dim, value_dim, softcap)
        if why is None:
            return candidate, modules[candidate].decode
        if name != "auto":
            raise ValueError(f"attention={name} cannot run here: {why}")
    raise ValueError(f"no attention kernel runs on {device} with {dtype}")
