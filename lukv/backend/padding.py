"""Padding: rows of token ids as one padded batch, and back from a padding mask to the columns that hold tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

Range = tuple[int, int]
"""First valid column of a row, and last valid column + 1."""


def pad_left(
    ids: Tensor | Sequence[Sequence[int]], mask: Tensor | None, device: torch.device | str
) -> tuple[Tensor, Tensor | None]:
    """Put rows of token ids into one batch with padding on the left.

    ids: lists of any length >= 1, or a tensor [B, T] with mask [B, T] (1: token). Returns ids [B, T] and mask [B, T]
    int64 on `device`; the mask is None where nothing is padded. Raises ValueError for a row without a token.
    """
    if isinstance(ids, Tensor) and (mask is None or bool(mask.all())):
        return ids.to(device), None
    if isinstance(ids, Tensor):
        rows = [row[used.bool()] for row, used in zip(ids.cpu(), mask.cpu(), strict=True)]  # type: ignore[union-attr]
    else:
        rows = [torch.tensor(row, dtype=torch.int64) for row in ids]
    if not rows or min(map(len, rows)) == 0:
        raise ValueError("every row needs at least one token")
    ids, mask = stack_left(rows)
    return ids.to(device), None if mask is None else mask.to(device)


def stack_left(rows: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """1-D token ids of any length, also 0 -> ids [B, T] and mask [B, T] as in `pad_left`, on the rows' device."""
    longest = max(map(len, rows))
    ids, used = (rows[0].new_zeros(len(rows), longest, dtype=torch.int64) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = row
        used[i, longest - len(row) :] = 1
    return ids, None if all(len(row) == longest for row in rows) else used


def find_range(valid: np.ndarray) -> Range:
    """The valid columns of one row [n] bool; (0, 0) if there are none. Raises ValueError for a row with a hole."""
    used = np.flatnonzero(valid)
    if len(used) == 0:
        return 0, 0
    if len(used) != used[-1] + 1 - used[0]:
        raise ValueError(
            "a row of the attention mask has a hole: padding must be on the left or on the right of each chunk"
        )
    return int(used[0]), int(used[-1]) + 1


def group_rows(ranges: Sequence[Range] | None) -> list[tuple[Range, list[int]]]:
    """Rows whose valid tokens stand in the same columns go together; rows without one are left out."""
    some = sorted(set(ranges or ()))
    return [((a, b), [row for row, valid in enumerate(ranges or ()) if valid == (a, b)]) for a, b in some if a < b]


class MaskReader:
    """Reads padding masks. All layers of a forward get the same mask tensor, so it is copied from the device once."""

    def __init__(self) -> None:
        self._mask: Tensor | None = None
        self._ranges: list[Range] | None = None

    def read(self, valid: Tensor | None) -> list[Range] | None:
        """valid [B, 1, n, 1] bool -> the valid range of each row. None means that every column is valid."""
        if valid is not self._mask:
            self._mask = valid
            self._ranges = None if valid is None else [find_range(row) for row in valid.flatten(1).cpu().numpy()]
        return self._ranges
