"""Evicted or not, the backend equals dense attention over the same entries, in every model family."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import transformers
from packaging import version
from transformers import DynamicCache

from lukv.backend import generate
from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import RaggedCache
from lukv.backend.generate import answer, append, compress
from tests.reference.dense_reference import FAMILIES, eviction, reference_logits, rows, tiny_model

EXACT = 1e-9
model_of = cache(tiny_model)


def logits_after(model, ragged, after, n):
    """[B, len(after[0]), vocabulary]: feed `after` to the cache, n tokens a step."""
    outs = []
    for a in range(0, len(after[0]), n):
        ids = torch.tensor([row[a : a + n] for row in after])
        positions = torch.from_numpy(ragged.tokens)[:, None] + torch.arange(n)
        with torch.no_grad():
            outs.append(model(ids, past_key_values=ragged, position_ids=positions).logits)
    return torch.cat(outs, 1)


def pad(prompts, side):
    longest = max(map(len, prompts))
    ids, mask = (
        torch.zeros(len(prompts), longest, dtype=torch.long),
        torch.zeros(len(prompts), longest, dtype=torch.long),
    )
    for i, prompt in enumerate(prompts):
        where = slice(longest - len(prompt), None) if side == "left" else slice(0, len(prompt))
        ids[i, where], mask[i, where] = torch.tensor(prompt), 1
    return ids, mask


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("side", "n"),
    [("left", 1), ("right", 5), pytest.param("left", 5, marks=SLOW), pytest.param("right", 1, marks=SLOW)],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_evicted_equals_minus_infinity(family, side, n):
    """Batch 2 with padding, 80 tokens after the prompt (more than the arena's first slack)."""
    model, prompts, after = model_of(family), rows([70, 57]), rows([80, 80], seed=1)
    ids, mask = pad(prompts, side)
    ragged = RaggedCache(model, eviction(0.3))
    with torch.no_grad():
        model(ids, attention_mask=mask, past_key_values=ragged, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    got = logits_after(model, ragged, after, n)
    full = RaggedCache(model)
    for row, prompt in enumerate(prompts):
        wanted = reference_logits(model, ragged, row, prompt, after[row])
        assert (got[row] - wanted).abs().max() <= EXACT
    with torch.no_grad():  # the test has teeth: the eviction moves the same logits far more than the tolerance
        model(ids, attention_mask=mask, past_key_values=full, position_ids=(mask.cumsum(-1) - 1).clamp(min=0))
    assert (got - logits_after(model, full, after, n)).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_keeping_everything_equals_the_stock_cache(family):
    model, prompt, after = model_of(family), rows([70]), rows([80], seed=1)
    ragged = compress(model, prompt)
    got = logits_after(model, ragged, after, 1)
    model.set_attn_implementation("eager_reference")
    stock = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor(prompt), past_key_values=stock)
        wanted = [model(torch.tensor([[t]]), past_key_values=stock).logits for t in after[0]]
    use_ragged_attention(model)
    assert (got - torch.cat(wanted, 1)).abs().max() <= EXACT
    assert ragged.kept_counts.min() == ragged.kept_counts.max() == 70


@pytest.mark.parametrize("family", FAMILIES)
def test_generate_gives_identical_tokens(family):
    """model.generate: with everything kept as with the stock cache; evicted as our own loop; a batch as its rows
    alone."""
    model, prompts = model_of(family, layers=2), rows([70, 57])
    ids, mask = pad(prompts, "left")
    options = {"max_new_tokens": 20, "do_sample": False}
    kept = model.generate(ids, attention_mask=mask, past_key_values=RaggedCache(model), **options)
    evicted = model.generate(ids, attention_mask=mask, past_key_values=RaggedCache(model, eviction(0.3)), **options)
    for row, prompt in enumerate(prompts):
        ragged = compress(model, [prompt[:-1]])  # the last token is fed by hand, as a question of one token
        assert answer(model, ragged, [prompt[-1:]], 20).tokens[0] == kept[row, 70:].tolist()
        alone = model.generate(torch.tensor([prompt]), past_key_values=RaggedCache(model, eviction(0.3)), **options)
        assert alone[0, len(prompt) :].tolist() == evicted[row, 70:].tolist()
    model.set_attn_implementation("eager_reference")
    for row, prompt in enumerate(prompts):
        stock = model.generate(torch.tensor([prompt]), past_key_values=DynamicCache(config=model.config), **options)
        assert stock[0, len(prompt) :].tolist() == kept[row, 70:].tolist()
    use_ragged_attention(model)


@pytest.mark.skipif(version.parse(transformers.__version__) < version.parse("5.3"), reason="broken in transformers 5.2")
def test_generate_with_its_prompt_in_chunks():
    """transformers' own prefill_chunk_size, where the cache is told how long the prompt is."""
    model, prompts = model_of("llama", layers=2), rows([70, 57])
    ids, mask = pad(prompts, "left")
    options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False}
    whole = model.generate(ids, past_key_values=RaggedCache(model, eviction(0.3)), **options)
    ragged = RaggedCache(model, eviction(0.3), prompt_columns=70)
    assert model.generate(ids, past_key_values=ragged, prefill_chunk_size=16, **options).tolist() == whole.tolist()


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_generate_goes_on_from_a_compressed_cache(family):
    model, prompt, question = model_of(family, layers=2), rows([60])[0], rows([9], seed=1)[0]
    ragged = compress(model, [prompt], eviction=eviction(0.3))
    wanted = answer(model, ragged, [question], 12).tokens[0]
    ragged.rollback()
    out = model.generate(torch.tensor([prompt + question]), past_key_values=ragged, max_new_tokens=12, do_sample=False)
    assert out[0, 69:].tolist() == wanted


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text"])
def test_a_batch_of_questions_equals_each_alone(family):
    """Contexts and questions of different length, answers of different length; then rolled back and asked again."""
    model, prompts, questions = model_of(family), rows([40, 70, 55]), rows([9, 2, 30], seed=1)
    batch = compress(model, prompts, eviction=eviction(0.4))
    first = answer(model, batch, questions, 12)
    end = {first.tokens[0][4]}
    batch.rollback()
    second = answer(model, batch, questions[::-1], 12)
    batch.rollback()
    assert answer(model, batch, questions, 12).tokens == first.tokens
    batch.rollback()
    stopped = answer(model, batch, questions, 12, eos_ids=tuple(end)).tokens
    for row, prompt in enumerate(prompts):
        alone = compress(model, [prompt], eviction=eviction(0.4))
        assert answer(model, alone, [questions[row]], 12).tokens[0] == first.tokens[row]
        alone.rollback()
        assert answer(model, alone, [questions[2 - row]], 12).tokens[0] == second.tokens[row]
        assert [t for t in stopped[row] if t in end] == []
        assert first.tokens[row][: len(stopped[row])] == stopped[row]
        logits = append(model, compress(model, [prompt], eviction=eviction(0.4)), [questions[row]])
        batch.rollback()
        assert (append(model, batch, questions)[row] - logits[0]).abs().max() <= EXACT


def test_synchronising_seldom_changes_no_answer(monkeypatch):
    """On a GPU the host reads tokens every few steps: rows end in between, before the first reading and never."""
    model, prompts, questions = model_of("llama"), rows([40, 70, 55]), rows([9, 2, 30], seed=1)
    batch = compress(model, prompts, eviction=eviction(0.4))
    free = answer(model, batch, questions, 14).tokens
    for ends in ({free[0][0]}, {free[0][4], free[1][6]}, {free[2][13]}, set(), {row[2] for row in free}):
        wanted = []
        for sync_every in (1, 4, 5, 99):
            batch.rollback()
            monkeypatch.setitem(generate.SYNC_EVERY, "cpu", sync_every)
            wanted.append(answer(model, batch, questions, 14, eos_ids=tuple(ends)).tokens)
        assert wanted[1:] == wanted[:1] * 3
    assert wanted[0] != free


@pytest.mark.parametrize("chunk", [16, pytest.param(1, marks=SLOW), pytest.param(69, marks=SLOW)])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_in_chunks_equals_one_forward(family, chunk):
    model, prompts, question = model_of(family), rows([70, 57]), rows([7, 7], seed=1)
    whole, cut = (
        compress(model, prompts, eviction=eviction(0.3)),
        compress(model, prompts, eviction=eviction(0.3), chunk=chunk),
    )
    for one, other in zip(whole.layers, cut.layers, strict=True):
        for sequence in one.stored.sequences:
            assert torch.equal(one.stored.find_positions(sequence), other.stored.find_positions(sequence))
        for a, b in zip(one.stored.arena.gather(), other.stored.arena.gather(), strict=True):
            assert (a - b).abs().max() <= EXACT
    assert (append(model, whole, question) - append(model, cut, question)).abs().max() <= EXACT


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15), (torch.float16, 0.02)], ids=str
)
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "phi3"])
def test_low_precision_stays_near_float64(family, dtype, tolerance):
    """The same kept entries in float64: what is left is the rounding of the whole model."""
    exact, model = model_of(family), model_of(family, dtype)
    prompt, after = rows([70]), rows([30], seed=1)
    ragged = compress(model, prompt, eviction=eviction(0.3))
    got = logits_after(model, ragged, after, 1)[0].double()
    wanted = reference_logits(exact, ragged, 0, prompt[0], after[0])
    assert (got - wanted).abs().max() <= tolerance * wanted.abs().max()
