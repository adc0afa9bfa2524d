"""Every decode kernel that runs here, against dense float64 attention written out below."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.backend.kernels import _build, list_kernels, loop, pick

CPU = torch.device("cpu")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 5e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def garbage_of(name, whole):
    """What the rows between sequences hold. Only the loop may read them, under a mask, and only in a whole arena."""
    return 50.0 if name == "loop" and whole else math.nan


def arena(lengths, d, dv, dtype, seed, garbage, step=None):
    """Sequences with free rows before, between and behind them, which must not matter. step: each sequence takes up a
    multiple of so many rows."""
    generator = torch.Generator().manual_seed(seed)
    capacity = torch.tensor([math.ceil((n + 3) / step) * step if step else n + 3 for n in lengths])
    start = capacity.cumsum(0) - capacity + 2
    keys = torch.full((int(capacity.sum()) + 2, d), garbage, dtype=torch.float64)
    values = torch.full((len(keys), dv), garbage, dtype=torch.float64)
    for a, n in zip(start.tolist(), lengths, strict=True):
        keys[a : a + n] = torch.randn(n, d, generator=generator, dtype=torch.float64)
        values[a : a + n] = torch.randn(n, dv, generator=generator, dtype=torch.float64)
    return keys.to(dtype), values.to(dtype), start.int(), torch.tensor(lengths).int()


def expected(query, keys, values, start, length, scale, softcap):
    sequences, group, n, _ = query.shape
    out = torch.zeros(sequences, group, n, values.shape[1], dtype=torch.float64)
    for i in range(sequences):
        a, count = int(start[i]), int(length[i])
        for t in range(n):
            seen = slice(a, a + count - n + t + 1)
            logits = query[i, :, t].double() @ keys[seen].double().T * scale
            if softcap:
                logits = softcap * torch.tanh(logits / softcap)
            out[i, :, t] = logits.softmax(-1) @ values[seen].double()
    return out


def usable(name, dtype, d, dv, softcap):
    try:
        return pick(name, CPU, dtype, d, dv, softcap)[1]
    except ValueError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("n", [1, 5, 70])
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("name", list_kernels())
def test_equals_dense_attention(name, dtype, n, softcap, whole):
    d, dv = 24, 40
    decode = usable(name, dtype, d, dv, softcap is not None)
    lengths = [n, n + 1, 150, 77]
    keys, values, start, length = arena(lengths, d, dv, dtype, n, garbage_of(name, whole))
    query = torch.randn(4, 3, n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    out = decode(query, keys, values, start, length, 150, d**-0.5, softcap, whole)
    assert out.dtype == dtype
    wanted = expected(query, keys, values, start, length, d**-0.5, softcap)
    assert (out.double() - wanted).abs().max() <= TOLERANCE[dtype]


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_loop_equals_reference_on_any_shape(data):
    n = data.draw(st.just(1) | st.integers(1, 9), "n")
    length = st.integers(n, 60) | st.just(n + 5)  # equally spaced ones share a call
    lengths = data.draw(st.lists(length, min_size=1, max_size=7), "lengths")
    d, dv, group = (data.draw(st.integers(1, 20), name) for name in ("d", "dv", "group"))
    softcap = data.draw(st.sampled_from([None, 1.5]), "softcap")
    step = data.draw(st.sampled_from([None, 16, 64]), "step")
    order = data.draw(st.permutations(range(len(lengths))), "order")
    whole = data.draw(st.booleans(), "whole")
    query = torch.randn(len(lengths), group, n, d, dtype=torch.float64)
    for name in ("loop", "reference"):
        keys, values, start, length = arena(lengths, d, dv, torch.float64, d, garbage_of(name, whole), step)
        start, length = start[order], length[order]
        arguments = (query, keys, values, start, length, max(lengths), 1 / math.sqrt(d), softcap, whole)
        wanted = expected(*arguments[:5], 1 / math.sqrt(d), softcap)
        out = pick(name, CPU, torch.float64, d, dv, softcap is not None)[1](*arguments)
        assert (out - wanted).abs().max() <= 1e-12


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_loop_reads_short_sequences_together(softcap, monkeypatch):
    """A token of 40 sequences of 3 to 60 entries that take up 64 rows each: one call, whatever their order."""
    lengths = [3 + 37 * i % 58 for i in range(40)]
    keys, values, start, length = arena(lengths, 16, 16, torch.float32, 0, garbage_of("loop", True), step=64)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(2))
    start, length = start[order], length[order]
    query = torch.randn(40, 3, 1, 16)
    calls = []
    attend = loop.attend_masked
    monkeypatch.setattr(loop, "attend_masked", lambda *a: (calls.append(a), attend(*a))[1])
    out = loop.decode(query, keys, values, start, length, max(lengths), 0.25, softcap)
    assert len(calls) == 1
    wanted = expected(query, keys, values, start, length, 0.25, softcap)
    assert (out.double() - wanted).abs().max() <= TOLERANCE[torch.float32]


def test_auto_on_cpu_is_the_compiled_kernel_where_there_is_one():
    compiled = "native" if _build.find_obstacle() is None else "loop"
    assert pick("auto", CPU, torch.float32, 64, 64)[0] == compiled
    assert pick("auto", CPU, torch.float64, 64, 64)[0] == "loop"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flash", "is not a kernel: choose one of auto, fa2, flash_attn, loop, native, reference, triton"),
        ("fa2", "attention=fa2 cannot run here: fa2 needs a CUDA device, not cpu"),
        ("flash_attn", "pip install --no-build-isolation 'flash-attn>=2.8'"),
        ("triton", "attention=triton cannot run here: "),
    ],
)
def test_impossible_kernel_is_an_error(name, message, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"cannot run here|is not a kernel") as error:
        pick.__wrapped__(name, CPU, torch.float32, 64, 64)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
