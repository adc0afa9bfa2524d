"""What a cache can do after the prompt: roll back, evict again, stream, save, show its queries."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines.expected_attention import ExpectedAttention
from baselines.keydiff import KeyDiff
from baselines.snapkv import SnapKV
from baselines.streaming import Streaming
from lukv.allocation import Budget, Uniform
from lukv.backend import cache_file
from lukv.backend.generate import answer, append, compress, stream
from lukv.backend.layer import RaggedLayer
from lukv.scoring import Scorer
from lukv.selection import Eviction, Protection
from tests.reference.dense_reference import Noise, eviction, kept_by, reference_logits, rows, tiny_model

MODEL = tiny_model("qwen2", layers=2)
HYBRID = tiny_model("gemma3_text", layers=2)


@dataclass(frozen=True)
class LastQuery(Scorer):
    """Scores by the sum of all the prompt's queries, weighted by position: it needs `observe` in every chunk."""

    name: str = "last_query"

    def observe(self, observed, queries, start, rope):
        position = torch.arange(start, start + queries.shape[1], dtype=queries.dtype) + 1
        total = (queries * position[:, None]).sum(1)
        return total if observed is None else observed + total

    def score(self, layer):
        groups = layer.observed.view(layer.keys.shape[0], -1, layer.keys.shape[-1]).sum(1)
        return torch.einsum("kd,ktd->kt", groups, layer.keys).float()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_history_equals_dense_attention(data):
    """Random batches, budgets down to nothing kept, appends of any size, roll-backs: the logits are those of dense
    attention."""
    model = data.draw(st.sampled_from([MODEL, HYBRID]), "model")
    lengths = data.draw(st.lists(st.integers(1, 40), min_size=1, max_size=3), "prompts")
    share = data.draw(st.sampled_from([0.01, 0.1, 0.5, 0.9, 1.0]), "share")
    prompts = rows(lengths)
    cache = compress(model, prompts, eviction=eviction(share), chunk=data.draw(st.sampled_from([None, 1, 7]), "chunk"))
    after: list[list[int]] = [[] for _ in prompts]
    for step in range(data.draw(st.integers(1, 4), "steps")):
        if data.draw(st.booleans()):
            cache.rollback()
            after = [[] for _ in prompts]
        sizes = data.draw(st.lists(st.integers(1, 90), min_size=len(prompts), max_size=len(prompts)))
        new = rows(sizes, seed=step + 1)
        got = append(model, cache, new)
        after = [a + b for a, b in zip(after, new, strict=True)]
    for row, prompt in enumerate(prompts):
        wanted = reference_logits(model, cache, row, prompt, after[row])[-1]
        assert (got[row] - wanted).abs().max() <= 1e-9


def test_a_head_may_keep_nothing():
    prompt, question = rows([50]), rows([3], seed=1)
    cache = compress(MODEL, prompt, eviction=eviction(0.02))
    assert cache.kept_counts.sum(axis=(1, 2)).tolist() == [2, 2]
    assert cache.kept_counts.min() == 0
    wanted = reference_logits(MODEL, cache, 0, prompt[0], question[0])[-1]
    assert (append(MODEL, cache, question)[0] - wanted).abs().max() <= 1e-9


@pytest.mark.parametrize("model", [MODEL, HYBRID], ids=["qwen2", "gemma3"])
@pytest.mark.parametrize("scorer", [Noise(), LastQuery()], ids=lambda s: s.name)
def test_one_prefill_many_evictions(model, scorer):
    prompts, question = rows([60, 33]), rows([5, 9], seed=1)
    everything = compress(model, prompts, observe=[scorer] if isinstance(scorer, LastQuery) else [], chunk=16)
    append(model, everything, question)  # what came after the prompt is left out
    for share in (0.1, 0.3, 1.0):
        ours = everything.fork_for(eviction(share, scorer=scorer))
        direct = compress(model, prompts, eviction=eviction(share, scorer=scorer))
        assert (ours.kept_counts == direct.kept_counts).all()
        for row, layer in product(range(2), range(len(ours.evictable))):
            for a, b in zip(ours.find_positions(layer, row), direct.find_positions(layer, row), strict=True):
                assert torch.equal(a, b)
        assert answer(model, ours, question, 6).tokens == answer(model, direct, question, 6).tokens
        ours.rollback()
        assert ours.nbytes < everything.nbytes


def test_many_evictions_need_the_queries():
    with pytest.raises(ValueError, match="needs the prompt's queries"):
        compress(MODEL, rows([20])).fork_for(eviction(0.5, scorer=LastQuery()))
    with pytest.raises(ValueError, match="evicted already"):
        compress(MODEL, rows([20]), eviction=eviction(0.5)).fork_for(eviction(0.5))


def test_queries_are_observed_without_padding_and_in_any_chunks():
    prompts = rows([60, 33])
    alone = [compress(MODEL, [p], observe=[LastQuery()]) for p in prompts]
    for options in ({}, {"chunk": 1}, {"chunk": 25}):
        batch = compress(MODEL, prompts, observe=[LastQuery()], **options)
        for row, one in enumerate(alone):
            for a, b in zip(batch.layers, one.layers, strict=True):
                assert torch.allclose(a.scores.observed[row][LastQuery()], b.scores.observed[0][LastQuery()], atol=1e-8)


def test_bytes_are_exact():
    prompts = rows([60, 33])
    cache = compress(MODEL, prompts, eviction=eviction(0.25))
    entry = 2 * 16 * 8  # key and value of 16 float64
    assert cache.kept_counts.sum(axis=(1, 2)).tolist() == [30 + 17] * 2  # a quarter of 2 x 60 and of 2 x 33, half up
    assert cache.nbytes == int(cache.kept_counts.sum()) * entry
    assert cache.full_nbytes == 2 * 2 * 93 * entry
    rows_of = [
        64 * math.ceil((kept + 32) / 64) for kept in cache.kept_counts.ravel()
    ]  # 32 free ones, up to a multiple of 64
    assert cache.allocated_nbytes == sum(rows_of) * entry
    append(MODEL, cache, rows([3, 2], seed=1))
    assert cache.nbytes == (int(cache.kept_counts.sum()) + 2 * 2 * 5) * entry
    cache.rollback()
    assert cache.nbytes == int(cache.kept_counts.sum()) * entry


def test_future_queries_are_those_of_the_tokens_after_the_prompt():
    """Compared with the queries that a scorer sees when the same tokens are part of the prompt."""
    prompt, question = rows([30]), rows([4], seed=1)
    cache = compress(MODEL, prompt, record_queries=True)
    append(MODEL, cache, question)
    queries = cache.read_queries(1)
    assert queries.shape == (1, 8, 4, 16)
    whole = compress(MODEL, [prompt[0] + question[0]], observe=[LastQuery()])
    before = compress(MODEL, prompt, observe=[LastQuery()])
    added = (queries[0] * torch.arange(31, 35, dtype=torch.float64)[:, None]).sum(1)
    total = before.layers[1].scores.observed[0][LastQuery()] + added
    assert torch.allclose(total, whole.layers[1].scores.observed[0][LastQuery()], atol=1e-9)
    keys, values = cache.view_entries(1, 0)
    assert keys.shape == values.shape == (2, 34, 16)
    assert torch.allclose(keys, whole.view_entries(1, 0)[0], rtol=0, atol=1e-12)
    cache.rollback()
    with pytest.raises(RuntimeError, match="record_queries"):
        cache.read_queries(1)


@pytest.mark.parametrize("model", [MODEL, HYBRID], ids=["qwen2", "gemma3"])
def test_saved_and_loaded(model, tmp_path):
    prompts, question = rows([60, 33]), rows([5, 9], seed=1)
    cache = compress(model, prompts, eviction=eviction(0.3))
    path = tmp_path / "cache.safetensors"
    cache_file.save(cache, path)
    loaded = cache_file.load(path, model)
    assert (loaded.kept_counts == cache.kept_counts).all()
    assert loaded.nbytes == cache.nbytes
    for layer, other in zip(cache.layers, loaded.layers, strict=True):
        for sequence in layer.stored.sequences:
            assert torch.equal(layer.stored.find_positions(sequence), other.stored.find_positions(sequence))
    for _ in range(2):
        assert torch.equal(append(model, cache, question), append(model, loaded, question))
        cache.rollback()
        loaded.rollback()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_in_one_row_stays_there(bad):
    """Rows whose new tokens stand in different columns are decoded apart, and between them lies another row's memory.
    The first row's head takes up 64 rows of memory, the third has 101 entries."""
    model = tiny_model("qwen2", layers=2, num_key_value_heads=1)
    prompts, after = rows([30, 60, 100]), rows([1, 2, 1], seed=1)
    wanted = append(model, compress(model, prompts), after)
    cache = compress(model, prompts)
    for layer in cache.layers:
        for part in layer.stored.arena.view_sequence(1):
            part.fill_(bad)
    got = append(model, cache, after)
    assert got[1].isnan().all()
    assert (got[[0, 2]] - wanted[[0, 2]]).abs().max() <= 1e-9


def test_a_sliding_row_does_not_see_what_left_the_window_of_the_next():
    """The first head fills its 64 rows of memory. Of the 113 entries of the next one 80 are in the window."""
    model = tiny_model("gemma3_text", layers=2, sliding_window=80, num_key_value_heads=1)
    prompts, after = rows([30, 100]), rows([34, 34], seed=1)
    answers = []
    for left in (0.0, math.nan):
        cache = compress(model, prompts)
        append(model, cache, [row[:33] for row in after])
        arena = cache.layers[0].stored.arena
        assert arena.lengths.tolist() == [63, 112]
        arena.view_sequence(1)[1][:30] = left
        answers.append(append(model, cache, [row[33:] for row in after]))
    assert (answers[0] - answers[1]).abs().max() <= 1e-9


@torch.no_grad()
def shift(module):
    """Another checkpoint of the same geometry."""
    if isinstance(module, torch.nn.Linear):
        module.weight += 0.1


def test_broken_or_foreign_files_are_refused(tmp_path):
    path = tmp_path / "cache.safetensors"
    with pytest.raises(FileNotFoundError, match="no such file"):
        cache_file.load(path, MODEL)
    cache_file.save(compress(MODEL, rows([20]), eviction=eviction(0.5)), path)
    with pytest.raises(ValueError, match="belongs to another model"):
        cache_file.load(path, HYBRID)
    with pytest.raises(ValueError, match="belongs to other weights"):
        cache_file.load(path, tiny_model("qwen2", layers=2).apply(shift))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\x80\x04pickle", b"{}" * 50):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="not a cache file"):
            cache_file.load(path, MODEL)


def tokens(size: int, scorer: Scorer | None = None) -> Eviction:
    return Eviction(scorer or Noise(), Uniform(), Protection(sink=2, recent=3), Budget(tokens=size))


@pytest.fixture
def stages(monkeypatch):
    """Of every eviction after the prompt: tokens seen -> what row 0 keeps, and the longest head before it."""
    seen: dict[int, dict] = {}
    sizes: list[int] = []
    evict = RaggedLayer.evict_again

    def watch(layer, *due):
        sizes.append(layer.stored.arena.longest)
        evict(layer, *due)
        kept = seen.setdefault(int(layer.tokens[0]), {})
        kept[layer.index] = [layer.stored.find_positions(head) for head in range(layer.stored.arena.heads)]

    monkeypatch.setattr(RaggedLayer, "evict_again", watch)
    return seen, sizes


@pytest.mark.parametrize("scorer", [Noise(), LastQuery()], ids=lambda s: s.name)
def test_a_streamed_prompt_stays_within_budget_and_one_block(scorer, stages):
    prompt, question = rows([100, 100]), rows([5, 5], seed=1)
    wanted = replace(tokens(1, scorer), budget=Budget(share=0.2))
    cache = stream(MODEL, prompt, wanted, block=16)
    history, sizes = stages
    assert max(sizes) <= 20 + 16
    assert (cache.kept_counts == 20).all()
    for sequence in range(4):
        positions = cache.layers[0].stored.find_positions(sequence).tolist()
        assert positions == sorted(set(positions))
        assert {0, 1, 97, 98, 99} <= set(positions)  # protected from the first block to the last
    logits = append(MODEL, cache, question)[0]
    exact = reference_logits(MODEL, cache, 0, prompt[0], question[0], stages=sorted(history.items()))
    assert (logits - exact[-1]).abs().max() <= 1e-9
    cache.rollback()
    first = answer(MODEL, cache, question, 5).tokens
    assert cache.evictable[0].stored.arena.lengths.tolist() == [20 + 5 + 4] * 4  # the answer is not evicted
    cache.rollback()
    assert answer(MODEL, cache, question, 5).tokens == first


@pytest.mark.parametrize("scorer", [Noise(), LastQuery()], ids=lambda s: s.name)
def test_prompts_of_any_length_stream_together(scorer):
    """Each row holds what it holds alone, wherever its last block ends, and so answers the same."""
    prompts, question = rows([100, 37, 64, 3]), rows([5, 9, 1, 4], seed=1)
    wanted = replace(tokens(1, scorer), budget=Budget(share=0.2))
    together = stream(MODEL, prompts, wanted, block=16)
    logits = append(MODEL, together, question)
    assert together.kept_counts.sum(axis=(0, 2)).tolist() == [4 * 20, 4 * 7, 4 * 13, 4]
    for row, prompt in enumerate(prompts):
        alone = stream(MODEL, [prompt], wanted, block=16)
        assert (logits[row] - append(MODEL, alone, question[row : row + 1])[0]).abs().max() <= 1e-9
        for layer, one in zip(together.layers, alone.layers, strict=True):
            for head in range(2):
                assert torch.equal(layer.stored.find_positions(2 * row + head), one.stored.find_positions(head))


def test_a_streamed_prompt_that_fits_is_the_plain_prompt():
    prompt, question = rows([50]), rows([4], seed=1)
    whole = stream(MODEL, prompt, eviction(1.0, Uniform()), block=16)
    assert (append(MODEL, whole, question) - append(MODEL, compress(MODEL, prompt), question)).abs().max() <= 1e-9


def test_a_long_answer_stays_within_its_size(stages):
    prompts, after = rows([40, 25]), rows([60, 60], seed=1)
    cache = compress(MODEL, prompts, later=tokens(30, LastQuery()), every=8)
    for step in range(60):
        logits = append(MODEL, cache, [row[step : step + 1] for row in after])
    history, sizes = stages
    assert max(sizes[2:]) <= 30 + 8
    assert cache.tokens.tolist() == [100, 85]  # positions go on
    assert cache.find_positions(0, 0)[0][-3:].tolist() == [97, 98, 99]
    before = {boundary: kept for boundary, kept in history.items() if boundary < 100}
    exact = reference_logits(MODEL, cache, 0, prompts[0], after[0], stages=sorted(before.items()))
    assert (logits[0] - exact[-1]).abs().max() <= 1e-9
    with pytest.raises(RuntimeError, match="evicted again"):
        cache.rollback()


@pytest.mark.parametrize("scorer", [SnapKV(), ExpectedAttention(), KeyDiff(), Streaming()], ids=lambda s: s.name)
@pytest.mark.parametrize("size", [1, 20])
def test_what_a_scorer_would_protect_may_exceed_the_budget(scorer, size):
    """Answers and streamed prompts within fewer tokens than a window."""
    within = Eviction(scorer, Uniform(), Protection(), Budget(tokens=size))
    cache = compress(MODEL, rows([50]), later=within, every=8)
    for token in range(1, 17):
        append(MODEL, cache, [[token]])
    assert cache.evictable[0].stored.arena.lengths.tolist() == [size] * 2
    assert (stream(MODEL, rows([50]), within, block=8).kept_counts == size).all()


@pytest.mark.parametrize("model", [MODEL, HYBRID], ids=lambda m: m.config.model_type)
def test_long_answers_in_a_batch_are_those_of_each_row_alone(model):
    """Questions of any length, answers that end at any time: each row is evicted when its own tokens say so."""
    prompts, questions = rows([40, 25, 31, 9]), rows([5, 1, 11, 2], seed=1)
    later = tokens(12, LastQuery())

    def stop(so_far: list[int]) -> bool:
        return len(so_far) >= 3 + so_far[0] % 30

    said = answer(model, compress(model, prompts, later=later, every=8), questions, 40, stop=stop).tokens
    assert len(set(map(len, said))) > 2
    for row, prompt in enumerate(prompts):
        alone = compress(model, [prompt], later=later, every=8)
        assert answer(model, alone, questions[row : row + 1], 40, stop=stop).tokens == said[row : row + 1]


def test_evicting_again_equals_dense_attention_over_what_is_left(stages):
    """A second turn: it saw what the first eviction left, the question sees what is left of both."""
    prompt, second, question = rows([40]), rows([30], seed=1), rows([6], seed=2)
    cache = compress(MODEL, prompt, eviction=eviction(0.6), later=tokens(25))
    first_turn = (40, kept_by(cache, 0))
    append(MODEL, cache, second)
    cache.evict_again()
    assert (cache.kept_counts == 25).all()
    logits = append(MODEL, cache, question)
    exact = reference_logits(
        MODEL, cache, 0, prompt[0], second[0] + question[0], stages=[first_turn, *stages[0].items()]
    )
    assert (logits[0] - exact[-1]).abs().max() <= 1e-9
    cache.rollback()
    assert torch.equal(append(MODEL, cache, question), logits)


def test_a_second_turn_may_be_committed():
    cache = compress(MODEL, rows([40]), eviction=eviction(0.5))
    append(MODEL, cache, rows([7], seed=1))
    cache.commit()
    append(MODEL, cache, rows([7], seed=2))
    cache.rollback()
    assert cache.tokens.tolist() == [47]
    assert np.array_equal(cache.kept_counts.sum(axis=2), [[40 + 14], [40 + 14]])
