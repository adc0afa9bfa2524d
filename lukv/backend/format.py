"""Vectors in few bits: what `cache_dtype=int8` and `int4` store of a key or a value.

A vector is cut into groups of up to 32 channels. Each group has a scale and a zero point of its own in float16, and a
code of `bits` bits for each channel: value = zero + scale * code (asymmetric, round to nearest). A packed vector is one
row of bytes, so an arena holds packed vectors as it holds any others, and no entry depends on another.

Groups of channels are what was best of the layouts that leave entries independent: docs/beyond-embedded.md, "Layouts in
few bits".
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lukv.names import CACHE_DTYPES

GROUP = 32  # channels that share a scale, at most
SLOP, TINY = 2.0**-10, 2.0**-24
"""More than float16 rounds by: a share of a normal number, and the distance of subnormal ones."""


@dataclass(frozen=True)
class Format:
    """How vectors of `dim` channels are packed, with `bits` (4 or 8) a channel."""

    bits: int
    dim: int

    @property
    def groups(self) -> int:
        """The fewest equal groups of at most GROUP channels. Where there are none of half of that, it is one."""
        few, many = -(-self.dim // GROUP), self.dim // (GROUP // 2)
        return next((n for n in range(few, many + 1) if self.dim % n == 0), 1)

    @property
    def code_bytes(self) -> int:
        return -(-self.dim * self.bits // 8)

    @property
    def nbytes(self) -> int:
        """Bytes of one packed vector: its codes, scales and zero points."""
        return self.code_bytes + 4 * self.groups

    def pack(self, vectors: Tensor) -> Tensor:
        """vectors [rows, dim] -> [rows, nbytes] uint8. Raises ValueError for what float16 cannot span.

        The zero point is rounded down and the scale up, so that no value is farther than half a step from its code's.
        """
        levels = 2**self.bits - 1
        parts = vectors.to(widen(vectors.dtype)).unflatten(-1, (self.groups, -1))
        low, high = parts.aminmax(dim=-1, keepdim=True)
        zero = (low - low.abs() * SLOP - TINY).half()
        scale = ((high - zero) * ((1 + SLOP) / levels) + TINY).half()
        if not (torch.isfinite(zero) & torch.isfinite(scale)).all():
            raise ValueError(
                f"cache_dtype=int{self.bits} cannot store these keys or values: one is NaN or beyond 65504, which "
                "float16 scales do not span (cache_dtype=auto stores them)"
            )
        codes = ((parts - zero) / scale).round().clamp(0, levels).to(torch.uint8).flatten(1)
        if self.bits == 4:  # the first half of the channels in the low bits, the second in the high ones
            low_bits, high_bits = pad(codes, (0, self.dim % 2)).chunk(2, 1)
            codes = low_bits | high_bits << 4
        return torch.cat([codes, *(x.flatten(1).view(torch.uint8) for x in (scale, zero))], 1)

    def unpack(self, packed: Tensor, dtype: torch.dtype) -> Tensor:
        """packed [rows, nbytes] uint8 -> [rows, dim], computed in float32 (of float64 models in that)."""
        codes, about = packed.split([self.code_bytes, 4 * self.groups], dim=1)
        if self.bits == 4:
            codes = torch.cat([codes & 15, codes >> 4], 1)[:, : self.dim]
        wide = widen(dtype)
        halves = about.clone(memory_format=torch.contiguous_format).view(torch.float16).to(wide)
        scale, zero = halves.view(len(packed), 2, self.groups, 1).unbind(1)
        return torch.addcmul(zero, codes.to(wide).unflatten(1, (self.groups, -1)), scale).flatten(1).to(dtype)


def widen(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def choose_formats(cache_dtype: str, key_dim: int, value_dim: int) -> tuple[Format, Format] | None:
    """How keys and values are packed; None where they stay in the model's dtype."""
    bits = CACHE_DTYPES[cache_dtype]
    return None if bits is None else (Format(bits, key_dim), Format(bits, value_dim))
