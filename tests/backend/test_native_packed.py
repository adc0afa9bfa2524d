"""The compiled CPU kernel over entries in few bits: against a decoder written out number by number, against the loop,
and against itself over the same numbers stored densely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.backend.cache import RaggedCache
from lukv.backend.decode import attend_arena
from lukv.backend.format import Format
from lukv.backend.generate import compress
from lukv.backend.kernels import Kernel, Sequences, _build, loop, native, pick
from lukv.backend.parameters import AttentionParameters
from lukv.backend.quantized import pack_quantized
from tests.backend.test_exact import logits_after
from tests.backend.test_kernels import CPU, TOLERANCE, arena, expected
from tests.backend.test_quantized import decode
from tests.reference.dense_reference import eviction, rows, tiny_model

OBSTACLE = _build.find_obstacle()
pytestmark = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))

DTYPES = [torch.float32, torch.bfloat16]
NATIVE = Kernel("native", native.decode, native.decode_packed)
LOOP = Kernel("loop", loop.decode)


def pack_arena(lengths, formats, dtype, seed):
    """Packed sequences, and bytes of 255 (as float16: NaN) before, between and behind them."""
    keys, values, start, length = arena(lengths, formats[0].dim, formats[1].dim, dtype, seed, 0.0)
    packed = [format.pack(x) for format, x in zip(formats, (keys, values), strict=True)]
    unused = torch.ones(len(keys), dtype=torch.bool)
    for a, n in zip(start.tolist(), lengths, strict=True):
        unused[a : a + n] = False
    for rows_ in packed:
        rows_[unused] = 255
    return Sequences(*packed, start, length)


def join(packed, recent, formats, dtype):
    """The sequences stored densely, as `decode` reads packed rows, rounded to the model's dtype."""
    parts = []
    for old, new, format in zip(packed[:2], recent[:2], formats, strict=True):
        chunks = []
        for i in range(len(packed.start)):
            a, n = int(packed.start[i]), int(packed.length[i])
            dense = [decode(row, format.bits, format.dim)[0] for row in old[a : a + n].numpy()]
            chunks.append(torch.from_numpy(np.array(dense).reshape(n, format.dim)).to(dtype))
            a, n = int(recent.start[i]), int(recent.length[i])
            chunks.append(new[a : a + n])
        parts.append(torch.cat(chunks))
    length = packed.length + recent.length
    return *parts, length.cumsum(0) - length, length


@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from([4, 8]), st.sampled_from([None, 1.5]))
def test_equals_dense_attention_on_any_shape(data, dtype, bits, softcap):
    """A head may have nothing packed or nothing recent. What lies beside a sequence would give NaN."""
    pair = st.tuples(st.integers(0, 40), st.integers(0, 20)).filter(any)
    old, new = zip(*data.draw(st.lists(pair, min_size=1, max_size=4), "lengths"), strict=True)
    d, dv, group = (data.draw(st.integers(1, most), name) for name, most in (("d", 100), ("dv", 200), ("group", 10)))
    formats = Format(bits, d), Format(bits, dv)
    packed = pack_arena(old, formats, dtype, d)
    recent = Sequences(*arena(new, d, dv, dtype, dv, torch.nan))
    order = torch.tensor(data.draw(st.permutations(range(len(old))), "order"))
    packed, recent = (each._replace(start=each.start[order], length=each.length[order]) for each in (packed, recent))
    query = torch.randn(len(old), group, 1, d, generator=torch.Generator().manual_seed(group)).to(dtype)
    out = native.decode_packed(query, packed, recent, formats, d**-0.5, softcap)
    wanted = expected(query, *join(packed, recent, formats, dtype), d**-0.5, softcap)
    assert (out.double() - wanted).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dims", [(64, 64), (128, 80), (576, 33), (37, 1)])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_are_read_as_the_loop_has_them_unpacked(dtype, bits, dims):
    """Where nothing is recent, the result is to the last bit that over the same numbers stored densely."""
    formats = Format(bits, dims[0]), Format(bits, dims[1])
    packed = pack_arena([700, 1, 33], formats, dtype, bits)
    nothing = packed.keys.new_zeros(0, dtype=dtype)
    none = Sequences(nothing.view(0, dims[0]), nothing.view(0, dims[1]), packed.start, torch.zeros_like(packed.length))
    query = torch.randn(3, 7, 1, dims[0], generator=torch.Generator().manual_seed(1)).to(dtype)
    dense = [format.unpack(x, dtype) for format, x in zip(formats, packed[:2], strict=True)]
    wanted = native.decode(query, *dense, packed.start, packed.length, 700, 0.1, None)
    assert wanted.isfinite().all()
    assert torch.equal(native.decode_packed(query, packed, none, formats, 0.1, None), wanted)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", DTYPES)
def test_neither_threads_nor_neighbours_change_a_bit(dtype, bits):
    formats = Format(bits, 128), Format(bits, 128)
    packed = pack_arena([2000, 0, 1300, 700], formats, dtype, 4)
    recent = Sequences(*arena([8, 3, 8, 40], 128, 128, dtype, 5, torch.nan))
    query = torch.randn(4, 4, 1, 128, generator=torch.Generator().manual_seed(2)).to(dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = []
        for i in range(4):
            one = (each._replace(start=each.start[[i]], length=each.length[[i]]) for each in (packed, recent))
            alone.append(native.decode_packed(query[[i]], *one, formats, 0.1, None))
        torch.set_num_threads(3)
        together = native.decode_packed(query, packed, recent, formats, 0.1, None)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat(alone), together)


@pytest.mark.parametrize("chosen", [None, [2, 0]])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("dtype", DTYPES)
def test_an_arena_is_read_as_by_the_loop(dtype, heads, chosen):
    """Six query heads of two KV heads, and of six; all batch rows, and some of them; one token, and three."""
    kv = [torch.randn(3, heads, 90, d, generator=torch.Generator().manual_seed(d)).to(dtype) for d in (48, 20)]
    keep = torch.arange(90) < torch.tensor([[90, 1], [5, 9], [60, 8]]).repeat(1, heads // 2)[..., None]
    own, _ = pack_quantized(*map(list, (*kv, keep)), (Format(8, 48), Format(4, 20)))
    own.append(*(x[:, :, :3] for x in kv))
    some, parameters = 3 if chosen is None else 2, AttentionParameters(6, 0.2)
    for n in (1, 3):
        query = torch.randn(some, 6, n, 48, generator=torch.Generator().manual_seed(n)).to(dtype)
        ours, theirs = (attend_arena(kernel, query, own, parameters, chosen) for kernel in (NATIVE, LOOP))
        assert ours.shape == (some, 6, n, 20)
        assert (ours.double() - theirs.double()).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_decodes_as_with_the_loop(family, kind):
    """Padded rows of different length, evicted; further tokens, taken back, and again others; windows and softcap."""
    model, prompts, after = tiny_model(family, torch.float32), rows([70, 57]), rows([40, 40], seed=1)
    outs = {}
    for name in ("auto", "loop"):
        cache = compress(model, prompts, eviction=replace(eviction(0.5), cache_dtype=kind), attention=name)
        assert cache.kernel == {"auto": "native", "loop": "loop"}[name]
        first = logits_after(model, cache, after, 1)
        cache.rollback()
        outs[name] = torch.cat([first, logits_after(model, cache, [row[::-1] for row in after], 1)])
    assert (outs["auto"] - outs["loop"]).abs().max() <= 1e-4 * outs["loop"].abs().max()


def test_gradients_are_the_loops():
    kv = torch.randn(2, 1, 2, 30, 16)
    own, _ = pack_quantized(kv[0], kv[1], torch.ones(1, 2, 30, dtype=torch.bool), (Format(8, 16), Format(8, 16)))
    query = torch.randn(1, 4, 1, 16, requires_grad=True)
    attend_arena(NATIVE, query, own, AttentionParameters(4, 0.2)).square().sum().backward()
    assert query.grad is not None
    assert query.grad.abs().min() > 0


def test_bytes_of_other_numbers_are_refused():
    formats = Format(8, 16), Format(8, 16)
    packed, recent = pack_arena([20], formats, torch.float32, 0), Sequences(*arena([3], 16, 16, torch.bfloat16, 0, 0.0))
    one = torch.ones(1, 1, 1, 16)
    for parts, wanted in (((packed, recent), "float32"), ((recent, packed), "uint8")):
        with pytest.raises(TypeError, match=rf"keys of torch.bfloat16 and .* where the kernel reads torch.{wanted}"):
            native.decode_packed(one, *parts, formats, 0.25, None)


def test_auto_takes_it_for_the_models_that_it_reads():
    for dtype, name in ((torch.float32, "native"), (torch.bfloat16, "native"), (torch.float64, "loop")):
        assert pick("auto", CPU, dtype, 64, 64, cache_dtype="int4").name == name


def test_a_head_without_a_packed_entry():
    """1% of 57 tokens leaves most heads nothing but the tokens that come later."""
    model, prompts, after = tiny_model("llama", torch.float32), rows([57]), rows([5], seed=1)
    wanted = replace(eviction(0.01), cache_dtype="int4")
    ours, twin = (RaggedCache(model, wanted, attention=name) for name in ("native", "reference"))
    with torch.no_grad():
        for cache in (ours, twin):
            model(torch.tensor(prompts), past_key_values=cache)
    assert int(ours.kept_counts.min()) == 0
    logits = [logits_after(model, cache, after, 1) for cache in (ours, twin)]
    assert (logits[0] - logits[1]).abs().max() <= 1e-4 * logits[1].abs().max()
