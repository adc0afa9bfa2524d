"""attention_mass against softmax attention written out in full, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from lukv.ops import attention_mass


def dense(queries, keys, scale, first_position, softcap=None, reduce="mean", columns=None):
    """The definition: repeat the keys, mask, softmax, cut, reduce."""
    heads, rows, _ = queries.shape
    tokens = keys.shape[1]
    logits = queries.double() @ keys.double().repeat_interleave(heads // keys.shape[0], 0).transpose(1, 2) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    for row in range(rows):
        logits[:, row, first_position + row + 1 :] = -math.inf
    probabilities = logits.softmax(-1)[..., : tokens if columns is None else columns]
    return probabilities.mean(1) if reduce == "mean" else probabilities.amax(1)


@st.composite
def cases(draw):
    groups, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    rows, tokens = draw(st.integers(1, 9)), draw(st.integers(1, 300))
    first = draw(st.integers(0, tokens))  # the last rows may stand behind the last key
    return {
        "seed": draw(st.integers(0, 999)), "groups": groups, "per_group": per_group,
        "rows": rows, "tokens": tokens, "first": first,
        "columns": draw(st.none() | st.integers(0, tokens)), "reduce": draw(st.sampled_from(["mean", "max"])),
        "softcap": draw(st.sampled_from([None, 2.0])), "block": draw(st.sampled_from([None, 1, 300, 5000])),
    }  # fmt: skip


@given(cases())
@settings(max_examples=150, deadline=None)
def test_equals_dense_attention(case):
    random = torch.Generator().manual_seed(case["seed"])
    queries = (
        torch.randn(case["groups"] * case["per_group"], case["rows"], 6, generator=random, dtype=torch.float64) * 3
    )
    keys = torch.randn(case["groups"], case["tokens"], 6, generator=random, dtype=torch.float64)
    options = {name: case[name] for name in ("softcap", "reduce", "columns")}
    ours = attention_mass(queries, keys, 0.4, case["first"], block=case["block"], **options)
    torch.testing.assert_close(ours, dense(queries, keys, 0.4, case["first"], **options), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_half_precision_inputs_accumulate_in_float32(dtype):
    torch.manual_seed(0)
    queries, keys = torch.randn(8, 16, 64).to(dtype), torch.randn(2, 3000, 64).to(dtype)
    ours = attention_mass(queries, keys, 0.125, 2984, block=1 << 14)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), dense(queries, keys, 0.125, 2984), rtol=2e-5, atol=1e-9)


def test_uncut_mean_mass_is_a_distribution():
    torch.manual_seed(0)
    queries, keys = torch.randn(4, 8, 16), torch.randn(2, 500, 16)
    torch.testing.assert_close(attention_mass(queries, keys, 0.25, 492, block=1).sum(-1), torch.ones(4))


def test_keys_behind_a_row_get_nothing_from_it():
    torch.manual_seed(0)
    mass = attention_mass(torch.randn(2, 3, 8), torch.randn(1, 50, 8), 1.0, 20, block=1)
    assert (mass[:, 23:] == 0).all()
    assert (mass[:, :23] > 0).all()


def test_large_logits_do_not_overflow():
    queries, keys = torch.full((1, 2, 4), 1e3), torch.randn(1, 400, 4, generator=torch.Generator().manual_seed(1))
    for block in (1, None):
        assert torch.isfinite(attention_mass(queries, keys, 1e3, 398, block=block)).all()


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns; views of the inputs are not counted."""

    def __init__(self, inputs):
        super().__init__()
        self.known = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.untyped_storage().data_ptr() not in self.known:
            self.elements = max(self.elements, out.untyped_storage().nbytes() // out.element_size())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scratch_does_not_grow_with_the_context(dtype):
    largest = []
    for tokens in (4096, 16384):
        queries, keys = torch.randn(4, 16, 32).to(dtype), torch.randn(2, tokens, 32).to(dtype)
        with LargestTensor([queries, keys]) as seen:
            attention_mass(queries, keys, 0.2, tokens - 16, columns=64, block=1 << 14)
        largest.append(seen.elements)
    assert largest[0] == largest[1] <= 1 << 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keys": torch.zeros(3, 9, 8)}, "multiple of K"),
        ({"keys": torch.zeros(2, 9, 7)}, "d equal"),
        ({"columns": 10}, "columns <= T"),
        ({"first_position": -1}, "first_position >= 0"),
        ({"reduce": "sum"}, "use 'mean' or 'max'"),
    ],
)
def test_bad_input_is_one_line(change, message):
    arguments = {
        "queries": torch.zeros(4, 2, 8),
        "keys": torch.zeros(2, 9, 8),
        "scale": 1.0,
        "first_position": 7,
    } | change
    with pytest.raises(ValueError, match=message) as error:
        attention_mass(**arguments)
    assert "\n" not in str(error.value)
