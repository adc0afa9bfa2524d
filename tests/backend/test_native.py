"""The compiled CPU kernel: exact over any shape, whatever lies beside its sequences, and how it is built.

tests/backend/test_kernels.py runs it with the other kernels, too.
"""

from __future__ import annotations

import ctypes
import math
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.backend.cache import RaggedCache
from lukv.backend.format import Format
from lukv.backend.generate import compress
from lukv.backend.kernels import Sequences, _build, loop, native, pick
from tests.backend.test_exact import logits_after
from tests.backend.test_kernels import CPU, TOLERANCE, arena, expected
from tests.reference.dense_reference import eviction, rows, tiny_model

OBSTACLE = _build.find_obstacle()
needs_library = pytest.mark.skipif(OBSTACLE is not None, reason=str(OBSTACLE))


def draw_arena(data, dtype, garbage=math.nan, longest=60):
    lengths = data.draw(st.lists(st.integers(1, longest) | st.sampled_from([511, 512, 513]), min_size=1, max_size=5))
    d, dv, group = (data.draw(st.integers(1, most), name) for most, name in ((70, "d"), (140, "dv"), (10, "group")))
    keys, values, start, length = arena(lengths, d, dv, dtype, d, garbage)
    order = data.draw(st.permutations(range(len(lengths))), "order")
    start, length = start[order], length[order]
    generator = torch.Generator().manual_seed(dv)
    query = torch.randn(len(lengths), group, 1, d, generator=generator).to(dtype)
    return query, keys, values, start, length


@needs_library
@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([None, 1.5]))
def test_equals_dense_attention_on_any_shape(data, dtype, softcap):
    """Rows before, between and behind the sequences are NaN; one byte read too many shows."""
    arguments = draw_arena(data, dtype)
    scale = arguments[0].shape[-1] ** -0.5
    out = native.decode(*arguments, int(arguments[-1].max()), scale, softcap)
    wanted = expected(*arguments, scale, softcap)
    assert (out.double() - wanted).abs().max() <= TOLERANCE[dtype]


@needs_library
@settings(max_examples=30, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16]), st.sampled_from([math.inf, -math.inf, math.nan]))
def test_what_lies_beside_a_sequence_does_not_matter(data, dtype, garbage):
    query, keys, values, start, length = draw_arena(data, dtype, garbage)
    used = torch.zeros(len(keys), dtype=torch.bool)
    for a, n in zip(start.tolist(), length.tolist(), strict=True):
        used[a : a + n] = True
    clean = [torch.where(used[:, None], x, 0) for x in (keys, values)]
    out, wanted = (native.decode(query, *kv, start, length, 600, 0.2, None) for kv in ([keys, values], clean))
    assert out.isfinite().all()
    assert torch.equal(out, wanted)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("where", ["keys", "values"])
def test_nan_in_a_sequence_reaches_its_output_and_no_other(where, dtype):
    keys, values, start, length = arena([30, 600], 16, 16, dtype, 0, 0.0)
    broken = {"keys": keys, "values": values}[where]
    broken[start[1] + 40, 3] = math.nan
    out = native.decode(torch.ones(2, 3, 1, 16, dtype=dtype), keys, values, start, length, 600, 0.2, None)
    assert out[0].isfinite().all()
    assert out[1].isnan().all() if where == "keys" else out[1, :, :, 3].isnan().all()


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits(dtype):
    """Softmax over logits from -4000 to 4000 is that of the largest entry."""
    keys = torch.linspace(-4000, 4000, 300)[:, None].to(dtype)
    values = torch.arange(300.0)[:, None].to(dtype)
    one = torch.ones(1, 1, 1, 1, dtype=dtype)
    out = native.decode(one, keys, values, torch.tensor([0]), torch.tensor([300]), 300, 1.0, None)
    wanted = expected(one, keys, values, [0], [300], 1.0, None)
    assert (out.double() - wanted).abs().max() <= 299 * TOLERANCE[dtype]


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_less_exact_than_the_loop(dtype):
    keys, values, start, length = arena([3000, 17, 700, 1500], 64, 64, dtype, 3, 0.0)
    query = torch.randn(4, 4, 1, 64, generator=torch.Generator().manual_seed(1)).to(dtype) * 3
    wanted = expected(query, keys, values, start, length, 0.125, None)
    ours, theirs = (
        (kernel.decode(query, keys, values, start, length, 3000, 0.125, None).double() - wanted).square().mean().sqrt()
        for kernel in (native, loop)
    )
    assert ours <= 1.2 * theirs


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_neither_threads_nor_neighbours_change_a_bit(dtype):
    keys, values, start, length = arena([2000, 5, 1300, 700], 128, 128, dtype, 4, 0.0)
    query = torch.randn(4, 4, 1, 128, generator=torch.Generator().manual_seed(2)).to(dtype)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [
            native.decode(query[i : i + 1], keys, values, start[i : i + 1], length[i : i + 1], 2000, 0.1, None)
            for i in range(4)
        ]
        torch.set_num_threads(3)
        together = native.decode(query, keys, values, start, length, 2000, 0.1, None)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.cat(alone), together)


@needs_library
def test_gradients_are_the_loops():
    """The library computes none: where they are wanted, torch's own functions run."""
    keys, values, start, length = arena([20, 9], 16, 16, torch.float32, 0, 0.0)
    query = torch.randn(2, 3, 1, 16, requires_grad=True)
    native.decode(query, keys, values, start, length, 20, 0.25, None).square().sum().backward()
    assert query.grad is not None
    assert query.grad.abs().min() > 0


@needs_library
def test_addresses_of_other_numbers_are_refused():
    keys, values, start, length = arena([20], 16, 16, torch.bfloat16, 0, 0.0)
    with pytest.raises(TypeError, match=r"keys of torch.bfloat16 and .* where the kernel reads torch.float32"):
        native.decode(torch.ones(1, 1, 1, 16), keys, values, start, length, 20, 0.25, None)


@needs_library
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_model_decodes_as_with_the_loop(family):
    """Padded rows of different length, evicted; further tokens, taken back, and again others; windows and softcap."""
    model, prompts, after = tiny_model(family, torch.float32), rows([70, 57]), rows([40, 40], seed=1)
    outs = {}
    for name in ("native", "loop"):
        cache = compress(model, prompts, eviction=eviction(0.3), attention=name)
        assert cache.kernel == name
        first = logits_after(model, cache, after, 1)
        cache.rollback()
        outs[name] = torch.cat([first, logits_after(model, cache, [row[::-1] for row in after], 1)])
    assert (outs["native"] - outs["loop"]).abs().max() <= 1e-4 * outs["loop"].abs().max()


def test_a_head_without_a_token_of_the_prompt():
    """1% of 57 tokens leaves most heads nothing but the tokens that come later."""
    model, prompts, after = tiny_model("llama", torch.float32), rows([57]), rows([5], seed=1)
    cache = RaggedCache(model, eviction(0.01))
    with torch.no_grad():
        model(torch.tensor(prompts), past_key_values=cache)
    assert int(cache.kept_counts.min()) == 0
    twin = compress(model, prompts, eviction=eviction(0.01), attention="reference")
    ours, wanted = (logits_after(model, each, after, 1) for each in (cache, twin))
    assert (ours - wanted).abs().max() <= 1e-4 * wanted.abs().max()


# ---- building --------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_built(tmp_path, monkeypatch):
    """An empty cache folder, and a process that has loaded nothing yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_build, "load", _build.load.__wrapped__)
    monkeypatch.setattr(native, "find_function", native.find_function.__wrapped__)
    return tmp_path / "cache" / "lukv"


@needs_library
def test_without_bfloat16_instructions(tmp_path, monkeypatch):
    """Older processors multiply bfloat16 as float32: the same source, compiled as if for one."""
    path = tmp_path / "old.so"
    _build.compile_library(path, (*_build.FLAGS, "-mno-avx512bf16", "-O1"))
    monkeypatch.setattr(_build, "load", lambda: ctypes.CDLL(str(path)))
    monkeypatch.setattr(native, "find_function", native.find_function.__wrapped__)
    for d, dv in ((64, 96), (37, 5)):
        keys, values, start, length = arena([700, 3], d, dv, torch.bfloat16, 1, 0.0)
        formats = Format(8, d), Format(4, dv)
        packed = [format.pack(x) for format, x in zip(formats, (keys, values), strict=True)]
        read = [format.unpack(x, torch.bfloat16) for format, x in zip(formats, packed, strict=True)]
        query = torch.randn(2, 3, 1, d, generator=torch.Generator().manual_seed(0)).bfloat16()
        for stored, forms, dense in (((keys, values), (), (keys, values)), (packed, formats, read)):
            part = native.describe(stored[0].dtype, Sequences(*stored, start, length), *forms)
            out = native.attend(query, part, dv, d**-0.5, None)
            wanted = expected(query, *dense, start, length, d**-0.5, None)
            assert (out.double() - wanted).abs().max() <= TOLERANCE[torch.bfloat16]


@needs_library
def test_many_build_at_once(nothing_built):
    """Whichever is last, one whole library is left, and nothing beside it."""
    path = _build.locate_library()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: _build.compile_library(path, (*_build.FLAGS, "-O0")), range(2)))
    assert [each.name for each in nothing_built.iterdir()] == [path.name]
    assert hasattr(ctypes.CDLL(str(path)), "attend_float32")


@needs_library
def test_a_broken_compiler_is_one_line_and_auto_goes_on(nothing_built, tmp_path, monkeypatch, caplog):
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\necho 'in file x:' >&2\necho 'x:1: error: no such header' >&2\nexit 1\n")
    broken.chmod(0o700)
    monkeypatch.setenv("CXX", str(broken))
    asked = (CPU, torch.float32, 16, 16)
    with pytest.raises(ValueError, match=r"^attention=native cannot run here: .*broken could not compile .*header$"):
        pick.__wrapped__("native", *asked)
    assert not caplog.records
    assert pick.__wrapped__("auto", *asked).name == "loop"
    (line,) = caplog.messages
    assert line == (
        f"attention goes on without the native kernel: {broken} could not compile the native kernel: "
        "x:1: error: no such header"
    )
    assert list(nothing_built.iterdir()) == []


@needs_library
def test_without_a_compiler_the_loop_runs(nothing_built, monkeypatch, caplog):
    monkeypatch.setenv("CXX", "no-such-compiler")
    asked = (CPU, torch.float32, 16, 16)
    assert pick.__wrapped__("auto", *asked).name == "loop"
    assert not caplog.records  # nothing is broken; the kernel in use is printed and recorded
    with pytest.raises(ValueError, match="finds no C\\+\\+ compiler: apt install g\\+\\+"):
        pick.__wrapped__("native", *asked)


@needs_library
def test_a_cache_folder_that_cannot_be_written(nothing_built, monkeypatch, caplog):
    nothing_built.parent.write_text("a file")
    assert pick.__wrapped__("auto", CPU, torch.float32, 16, 16).name == "loop"
    assert "could not be stored or loaded" in caplog.text


@needs_library
def test_a_library_of_somebody_else_is_not_loaded(nothing_built, monkeypatch):
    nothing_built.mkdir(parents=True)
    _build.locate_library().write_bytes(b"")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(RuntimeError, match="belongs to somebody else"):
        native.find_problem(CPU, torch.float32, 16, 16, False)


@needs_library
def test_a_library_is_of_one_source_and_processor(nothing_built, tmp_path, monkeypatch):
    before = _build.locate_library()
    monkeypatch.setattr(_build, "find_features", lambda: frozenset({"avx512f"}))
    other_processor = _build.locate_library()
    source = tmp_path / "other.cpp"
    source.write_text(_build.SOURCE.read_text() + "\n")
    monkeypatch.setattr(_build, "SOURCE", source)
    assert len({before, other_processor, _build.locate_library()}) == 3
    assert "AVX-512" in str(_build.find_obstacle())


def test_what_it_cannot_compute_it_says():
    problems = [
        native.find_problem(torch.device("cuda"), torch.float32, 16, 16, False),
        native.find_problem(CPU, torch.float64, 16, 16, False),
    ]
    assert problems == [
        "native runs on a CPU, not on cuda (attention=loop runs anywhere)",
        "native computes in float32 or bfloat16, not torch.float64 (attention=loop takes any)",
    ]
    assert Path(_build.SOURCE).is_file()
