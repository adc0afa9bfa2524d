"""Caches in few bits: bytes against a decoder written out below, attention against the same values stored densely."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lukv.allocation import Budget
from lukv.backend import cache_file
from lukv.backend.arena import Arena
from lukv.backend.cache import CacheState, LayerState, RaggedCache
from lukv.backend.format import Format
from lukv.backend.generate import answer, append, compress, stream
from lukv.backend.kernels import pick
from lukv.backend.quantized import RECENT, Part, pack_quantized
from tests.reference.dense_reference import eviction, rows, tiny_model

MODEL = tiny_model("qwen2", layers=2)
HYBRID = tiny_model("gemma3_text", layers=2)
CPU = torch.device("cpu")
KINDS = ["int8", "int4"]


def decode(row: np.ndarray, bits: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The values and steps of one packed vector, number by number."""
    codes = bytes(row[: -(-dim * bits // 8)])
    half = -(-dim // 2)
    each = list(codes) if bits == 8 else [c % 16 for c in codes] + [c // 16 for c in codes]
    assert bits == 8 or len(codes) == half
    scale, zero = np.frombuffer(bytes(row[len(codes) :]), dtype=np.float16).astype(np.float64).reshape(2, -1)
    group = np.arange(dim) // (dim // len(scale))
    return zero[group] + scale[group] * np.array(each[:dim]), scale[group]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_value_is_farther_than_half_a_step(data):
    bits, dim = data.draw(st.sampled_from([4, 8]), "bits"), data.draw(st.integers(1, 100), "dim")
    count = data.draw(st.integers(0, 5), "rows")
    size = data.draw(st.sampled_from([0.0, 1e-5, 1.0, 300.0]), "spread")
    offset = data.draw(st.sampled_from([0.0, 1e-6, 7.0, -1000.0]), "offset")
    dtype = data.draw(st.sampled_from([torch.float64, torch.float32, torch.bfloat16]), "dtype")
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 9), "seed"))
    vectors = (torch.randn(count, dim, generator=generator, dtype=torch.float64) * size + offset).to(dtype)
    format = Format(bits, dim)
    packed = format.pack(vectors)
    assert packed.shape == (count, format.nbytes)
    assert packed.dtype is torch.uint8
    assert format.nbytes == -(-dim * bits // 8) + 4 * format.groups
    assert dim % format.groups == 0
    unpacked = format.unpack(packed, torch.float64).numpy()
    for vector, row, found in zip(vectors.double().numpy(), packed.numpy(), unpacked, strict=True):
        wanted, step = decode(row, bits, dim)
        assert np.allclose(found, wanted, rtol=1e-12, atol=0)
        assert (abs(wanted - vector) <= step / 2 + 1e-6 * abs(vector)).all()  # codes are computed in float32
        assert (step <= (vector.max() - vector.min()) / (2**bits - 1) * 1.01 + abs(vector).max() / 200 + 1e-6).all()


@pytest.mark.parametrize(("dim", "groups"), [(1, 1), (16, 1), (32, 1), (37, 1), (64, 2), (80, 4), (96, 3), (128, 4)])
def test_groups_are_equal_and_have_at_most_32_channels(dim, groups):
    assert Format(8, dim).groups == groups


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -1e6])
def test_what_float16_cannot_span_is_refused(bad):
    with pytest.raises(ValueError, match=r"cache_dtype=int4 cannot store .*auto") as error:
        Format(4, 3).pack(torch.tensor([[1.0, bad, 2.0]]))
    assert "\n" not in str(error.value)


def unpacked(cache: RaggedCache, model) -> RaggedCache:
    """The same cache with every packed entry stored densely, as `decode` above reads it; float64 reference kernel."""
    state, layers = cache.state(), []
    for own in state.layers:
        recent, *packed = own.parts
        if packed:
            (old,) = packed
            lengths = old.lengths + recent.lengths
            joined = []
            for new, bytes_ in ((recent.keys, old.keys), (recent.values, old.values)):
                dim = new.shape[1]
                bits = {"int8": 8, "int4": 4}[cache.options.cache_dtype]
                dense = torch.from_numpy(
                    np.array([decode(row, bits, dim)[0] for row in bytes_.numpy()]).reshape(-1, dim)
                )
                pairs = zip(dense.split(old.lengths.tolist()), new.split(recent.lengths.tolist()), strict=True)
                joined.append(torch.cat([x for pair in pairs for x in pair]))
            recent = Part(joined[0], joined[1], lengths)
        layers.append(LayerState([recent], own.positions))
    plain = CacheState(state.seen, state.tokens, layers)
    return RaggedCache.from_state(model, plain, [CPU] * len(layers), "reference")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [MODEL, HYBRID], ids=["qwen2", "gemma3"])
def test_any_history_equals_the_dense_reference(model, kind):
    """A batch with padding, pieces of any size, roll-backs, a head that keeps nothing, rows picked out."""
    prompts = rows([60, 33, 20])
    cache = compress(model, prompts, eviction=replace(eviction(0.3), cache_dtype=kind), chunk=16)
    dense = unpacked(cache, model)
    assert cache.kept_counts.min() < RECENT < cache.kept_counts.max()
    for sizes in ([5, 9, 1], [1, 1, 1], [70, 30, 90]):
        for seed in (1, 2):
            new = rows(sizes, seed)
            assert (append(model, cache, new) - append(model, dense, new)).abs().max() <= 1e-9
        some, wanted = cache.select_rows([2, 0]), dense.select_rows([2, 0])
        assert (append(model, some, new[:2]) - append(model, wanted, new[:2])).abs().max() <= 1e-9
        cache.rollback()
        dense.rollback()


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_exact(kind):
    prompts = rows([60, 33])
    cache = compress(MODEL, prompts, eviction=replace(eviction(0.4), cache_dtype=kind))
    entry = 2 * 16 * 8  # key and value of 16 float64
    packed = 2 * ({"int8": 16, "int4": 8}[kind] + 4)
    recent = np.minimum(cache.kept_counts, RECENT)
    bytes_ = recent * entry + (cache.kept_counts - recent) * packed
    assert cache.row_nbytes.tolist() == bytes_.sum(axis=(0, 2)).tolist()
    assert cache.full_nbytes == 2 * 2 * 93 * entry
    held = [layer.held.arena for layer in cache.layers]
    assert (
        sum(arena.packed.nbytes for arena in held) == int((cache.kept_counts - recent).sum()) * packed
    )  # no free rows
    append(MODEL, cache, rows([3, 2], seed=1))
    assert cache.nbytes == bytes_.sum() + 2 * 2 * 5 * entry  # what comes after is in the model's dtype
    cache.rollback()
    assert cache.nbytes == bytes_.sum()


@pytest.mark.parametrize("kind", KINDS)
def test_one_prefill_many_formats(kind):
    prompts, question = rows([60, 33]), rows([5, 9], seed=1)
    everything = compress(MODEL, prompts)
    wanted = replace(eviction(0.3), cache_dtype=kind)
    ours, direct = everything.fork_for(wanted), compress(MODEL, prompts, eviction=wanted)
    assert ours.nbytes == direct.nbytes
    assert (append(MODEL, ours, question) - append(MODEL, direct, question)).abs().max() <= 1e-9
    assert everything.fork_for(eviction(0.3)).options.cache_dtype == "auto"
    whole = compress(MODEL, prompts, eviction=replace(wanted, budget=Budget(share=1.0)))
    again = whole.fork_for(wanted)  # of what is stored: its codes are read, and packed once more
    assert (again.kept_counts == ours.kept_counts).all()


@pytest.mark.parametrize("model", [MODEL, HYBRID], ids=["qwen2", "gemma3"])
def test_saved_and_loaded(model, tmp_path):
    prompts, question = rows([60, 33]), rows([5, 9], seed=1)
    cache = compress(model, prompts, eviction=replace(eviction(0.3), cache_dtype="int4"))
    path = tmp_path / "cache.safetensors"
    cache_file.save(cache, path)
    loaded = cache_file.load(path, model)
    assert loaded.options.cache_dtype == "int4"
    assert loaded.row_nbytes.tolist() == cache.row_nbytes.tolist()
    for _ in range(2):
        assert torch.equal(append(model, cache, question), append(model, loaded, question))
        cache.rollback()
        loaded.rollback()
    assert (loaded.kept_counts == cache.kept_counts).all()


@pytest.mark.parametrize("kind", KINDS)
def test_evicted_again_what_is_packed_keeps_its_codes(kind):
    """A long answer in a batch: after every eviction the cache is the dense one, and old codes are there bit by bit."""
    prompts, after = rows([40, 25]), rows([40, 40], seed=1)
    later = replace(eviction(1.0), budget=Budget(tokens=20), cache_dtype=kind)
    cache = compress(MODEL, prompts, later=later, every=8)
    before = cache.state().layers[0]
    for step in range(40):
        dense = unpacked(cache, MODEL)
        new = [row[step : step + 1] for row in after]
        assert (append(MODEL, cache, new) - append(MODEL, dense, new)).abs().max() <= 1e-9
    arena = cache.layers[0].held.arena
    assert (arena.lengths <= 2 * 20 * 0.7 + 8).all()  # the first head of two keeps seven tenths
    assert (arena.packed.lengths > 0).any()
    old = {bytes(row) for row in before.parts[1].keys.numpy()}
    still = [bytes(row) for row in arena.packed.gather()[0].numpy()]
    assert 0 < sum(row in old for row in still) < len(still)
    with pytest.raises(RuntimeError, match="evicted again"):
        cache.rollback()


def test_a_prompt_streams_in_and_is_packed():
    prompts, question = rows([100, 37]), rows([5, 9], seed=1)
    wanted = replace(eviction(0.3), cache_dtype="int8")
    cache = stream(MODEL, prompts, wanted, block=16)
    plain = stream(MODEL, prompts, eviction(0.3), block=16)
    assert (cache.kept_counts == plain.kept_counts).all()
    assert cache.nbytes < 0.6 * plain.nbytes
    assert (append(MODEL, cache, question) - append(MODEL, unpacked(cache, MODEL), question)).abs().max() > 0
    cache.rollback()
    dense = unpacked(cache, MODEL)
    assert (append(MODEL, cache, question) - append(MODEL, dense, question)).abs().max() <= 1e-9


def test_generate_gives_the_same_tokens():
    prompt, question = rows([50]), rows([5], seed=1)
    wanted = replace(eviction(0.5), cache_dtype="int8")
    said = answer(MODEL, compress(MODEL, prompt, eviction=wanted), question, 6).tokens
    cache = compress(MODEL, prompt, eviction=wanted)
    out = MODEL.generate(
        torch.tensor([prompt[0] + question[0]]), past_key_values=cache, max_new_tokens=6, do_sample=False
    )
    assert out[0, 55:].tolist() == said[0]


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_tiles_hold_what_the_sequences_hold(data):
    """Whatever the tile's size: each sequence's entries, in order, and zeros between them."""
    lengths = np.array(data.draw(st.lists(st.integers(0, 30), min_size=4, max_size=4), "lengths"))
    keys, values = torch.randn(2, 2, 30, 5), torch.randn(2, 2, 30, 3)
    keep = torch.arange(30) < torch.from_numpy(lengths).view(2, 2, 1)
    arena, positions = pack_quantized(list(keys), list(values), list(keep), (Format(8, 5), Format(4, 3)))
    assert positions.tolist() == [i for n in lengths for i in range(n)]
    assert arena.lengths.tolist() == lengths.tolist()
    new = torch.randn(2, 2, 2, 5), torch.randn(2, 2, 2, 3)
    arena.append(*new)
    chosen = np.array(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=4, unique=True), "chosen"))
    tile = arena.read(chosen)
    used = torch.zeros(len(tile.keys), dtype=torch.bool)
    for i, a, n in zip(chosen, tile.start.tolist(), tile.length.tolist(), strict=True):
        own = arena.view_sequence(i)
        assert torch.equal(tile.keys[a : a + n], own[0])
        assert torch.equal(tile.values[a : a + n], own[1])
        assert torch.equal(own[0][-2:], new[0].flatten(0, 1)[i])
        used[a : a + n] = True
    assert tile.longest == max(tile.length)
    assert not tile.keys[~used].any()
    parts = list(arena.cut(np.arange(4)))
    assert [i for part in parts for i in range(4)[part]] == [0, 1, 2, 3]


def test_many_tiles_are_one_attention(monkeypatch):
    prompts, question = rows([60, 33, 50]), rows([5, 9, 2], seed=1)
    wanted = replace(eviction(0.9), cache_dtype="int8")
    at_once = append(MODEL, compress(MODEL, prompts, eviction=wanted), question)
    monkeypatch.setattr("lukv.backend.quantized.TILE", 100)
    assert (append(MODEL, compress(MODEL, prompts, eviction=wanted), question) - at_once).abs().max() <= 1e-9


@pytest.mark.parametrize("name", ["fa2", "flash_attn", "triton"])
def test_kernels_that_read_no_codes_say_so(name):
    with pytest.raises(
        ValueError, match=f"{name} cannot read a cache of cache_dtype=int8.*attention=loop can"
    ) as error:
        pick.__wrapped__(name, CPU, torch.float32, 64, 64, cache_dtype="int8")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="cannot read a cache of cache_dtype=int8"):
        compress(MODEL, rows([20]), eviction=replace(eviction(0.5), cache_dtype="int8"), attention=name)


def test_a_cache_has_one_dtype():
    with pytest.raises(ValueError, match=r"cache_dtype=int3 is not known\. Did you mean 'int"):
        replace(eviction(0.5), cache_dtype="int3")
    with pytest.raises(ValueError, match="the eviction and later= say auto and int8"):
        compress(MODEL, rows([20]), eviction=eviction(0.5), later=replace(eviction(0.5), cache_dtype="int8"))


def test_an_arena_that_does_not_grow_has_no_free_rows():
    arena = Arena([torch.ones(7, 2)], [torch.ones(7, 3)], np.array([4, 3]), 1, grows=False)
    assert arena.nbytes == 7 * 5 * 4 == arena.row_nbytes.sum()
