"""Rows of any length become one padded batch, and their columns are found again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lukv.backend.padding import MaskReader, find_range, pad_left, stack_left

ROWS = st.lists(st.lists(st.integers(1, 9), max_size=6), min_size=1, max_size=4)


@given(ROWS)
def test_valid_ranges_give_the_rows_back(rows):
    ids, mask = stack_left([torch.tensor(row, dtype=torch.int64) for row in rows])
    ranges = MaskReader().read(mask) or [(0, ids.shape[1])] * len(rows)
    assert [ids[row, a:b].tolist() for row, (a, b) in enumerate(ranges)] == rows
    assert (mask is None) == (len({len(row) for row in rows}) == 1)


@given(ROWS.filter(lambda rows: min(map(len, rows)) > 0), st.integers(0, 3))
def test_padding_on_the_right_moves_to_the_left(rows, more):
    wide = max(map(len, rows)) + more
    ids, mask = (torch.zeros(len(rows), wide, dtype=torch.int64) for _ in range(2))
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = torch.tensor(row), 1
    for got, wanted in zip(pad_left(ids, mask, "cpu"), pad_left(rows, None, "cpu"), strict=True):
        assert (got is None and wanted is None) or torch.equal(got, wanted)


def test_a_mask_is_read_again_only_if_it_is_another():
    reader = MaskReader()
    first, second = torch.tensor([[0, 1, 1]]), torch.tensor([[1, 1, 0]])
    assert reader.read(first) is reader.read(first)
    assert (reader.read(first), reader.read(second), reader.read(None)) == ([(1, 3)], [(0, 2)], None)


def test_a_row_without_tokens_or_with_a_hole():
    assert find_range(np.array([False, False])) == (0, 0)
    with pytest.raises(ValueError, match="has a hole"):
        find_range(np.array([True, False, True]))
