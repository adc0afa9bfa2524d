"""The arena against a plain Python list per sequence."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.backend.arena import SLACK, Arena, pack


def entries(n, d):
    return torch.randn(n, d, dtype=torch.float64)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_history_of_appends_and_truncations(data):
    batch, heads = data.draw(st.integers(1, 3), "batch"), data.draw(st.integers(1, 3), "heads")
    d, dv = data.draw(st.integers(1, 3), "d"), data.draw(st.integers(1, 3), "dv")
    lengths = np.array(data.draw(st.lists(st.integers(0, 9), min_size=batch * heads, max_size=batch * heads), "kept"))
    packed = entries(int(lengths.sum()), d), entries(int(lengths.sum()), dv)
    model = [list(zip(*rows, strict=True)) for rows in zip(*(x.split(lengths.tolist()) for x in packed), strict=True)]
    cut = data.draw(st.integers(0, int(lengths.sum())), "cut")
    arena = Arena(*((x[:cut], x[cut:]) for x in packed), lengths, batch)
    first = arena.lengths.copy()
    for _ in range(data.draw(st.integers(0, 8), "steps")):
        action = data.draw(st.sampled_from(["append", "row", "reserve", "truncate"]))
        n = data.draw(st.integers(1, 2 * SLACK))
        if action == "append":
            k, v = torch.randn(batch, heads, n, d).double(), torch.randn(batch, heads, n, dv).double()
            arena.append(k, v)
            for i in range(batch * heads):
                model[i] += zip(k.flatten(0, 1)[i], v.flatten(0, 1)[i], strict=True)
        elif action == "row":
            row = data.draw(st.integers(0, batch - 1))
            k, v = torch.randn(1, heads, n, d).double(), torch.randn(1, heads, n, dv).double()
            arena.append(k, v, [row])
            for head in range(heads):
                model[row * heads + head] += zip(k[0, head], v[0, head], strict=True)
        elif action == "reserve":
            arena.reserve(n)
        else:
            arena.truncate(first)
            model = [sequence[:count] for sequence, count in zip(model, first, strict=True)]
        used = torch.zeros(len(arena.keys), dtype=torch.bool)
        assert arena.lengths.tolist() == [len(sequence) for sequence in model] == arena.length.tolist()
        for i, sequence in enumerate(model):
            k, v = arena.view_sequence(i)
            assert all(torch.equal(a, b) and torch.equal(c, e) for a, c, (b, e) in zip(k, v, sequence, strict=True))
            a = int(arena.start[i])
            assert torch.equal(arena.keys[a : a + len(sequence)], k)
            used[a : a + len(sequence)] = True
        assert not arena.keys[~used].any()  # attention reads free rows, under a mask
        assert not arena.values[~used].any()
    packed_keys, _ = arena.gather()
    assert len(packed_keys) == sum(map(len, model))


def test_growth_is_amortised():
    """Appending one by one moves each entry a bounded number of times, whatever the length."""
    arena = Arena([torch.zeros(2000, 4)], [torch.zeros(2000, 4)], np.array([1000, 1000]), 1)
    moved = 0
    for _ in range(8000):
        before = arena.keys
        arena.append(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
        moved += 0 if arena.keys is before else int(arena.lengths.sum())
    assert 0 < moved <= 12 * int(arena.lengths.sum())


def test_pack_keeps_position_order_and_says_where():
    keys = [torch.arange(10.0).view(2, 5, 1), torch.arange(6.0).view(2, 3, 1) + 100]
    keep = [
        torch.tensor([[1, 0, 0, 1, 1], [0, 0, 0, 0, 0]], dtype=torch.bool),
        torch.tensor([[0, 1, 0], [1, 1, 1]], dtype=torch.bool),
    ]
    arena, positions = pack(keys, [2 * k for k in keys], keep)
    assert arena.lengths.tolist() == [3, 0, 1, 3]
    assert positions.tolist() == [0, 3, 4, 1, 0, 1, 2]
    assert [arena.view_sequence(i)[0].flatten().tolist() for i in range(4)] == [[0, 3, 4], [], [101], [103, 104, 105]]
    assert arena.view_sequence(3)[1].flatten().tolist() == [206, 208, 210]
    with pytest.raises(ValueError, match="different numbers of entries"):
        arena.view_row(0)
