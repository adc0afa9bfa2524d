"""Layers that read the keys and values of an earlier layer: its entries are stored and evicted once, and the answer is
that of dense attention over them."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lukv.backend import cache_file
from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import RaggedCache
from lukv.backend.config import hash_config
from lukv.backend.generate import answer, append, compress, stream
from lukv.backend.geometry import count_kv_heads, measure_geometry
from tests.reference.dense_reference import REFERENCE, eviction, rows

EXACT = 1e-9
LAYERS = ["sliding_attention", "full_attention"] * 3
SMALL = {
    "vocab_size": 97, "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "num_hidden_layers": 6, "layer_types": LAYERS, "sliding_window": 24, "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 97, "hidden_size_per_layer_input": 8, "max_position_embeddings": 512,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS = {
    "gemma3n_text": {"intermediate_size": [48] * 6, "activation_sparsity_pattern": [0.0] * 6, "laurel_rank": 4,
                     "altup_num_inputs": 2},
    "gemma4_text": {"intermediate_size": 48, "global_head_dim": 16},
}  # fmt: skip


@cache
def make(kind: str):
    try:
        config = AutoConfig.for_model(kind, **SMALL, **KINDS[kind])
    except ValueError:
        pytest.skip(f"this transformers has no {kind}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval().double()
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.15)
    use_ragged_attention(model)
    return model


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest):
    return make(request.param)


def find_kept(ragged: RaggedCache, row: int):
    """Every full-attention layer of the model, those that read an earlier layer's entries included -> what stayed."""
    kept = {index: ragged.find_positions(i, row) for i, index in enumerate(ragged.model_layers)}
    return {**kept, 5: kept[3]}


@torch.no_grad()
def reference(model, stages, ids):
    """[n, vocabulary]: dense attention in one forward, where tokens from each stage on see only what was kept. With a
    cache of its own: without one, gemma3n's layers do not share keys in transformers 5.2."""
    REFERENCE.stages, REFERENCE.windows = stages, [24, None] * 3
    model.set_attn_implementation("dense_reference")
    logits = model(torch.tensor([ids]), use_cache=True).logits[0]
    use_ragged_attention(model)
    return logits


@pytest.mark.parametrize("chunk", [None, 16])
def test_evicted_equals_minus_infinity(model, chunk):
    prompts, after = rows([70, 57]), rows([40, 33], seed=1)
    ragged = compress(model, prompts, eviction=eviction(0.3), chunk=chunk)
    full = compress(model, prompts, chunk=chunk)
    kept = [find_kept(ragged, row) for row in range(2)]
    assert len(ragged.layers) == 4  # what is read is stored, and evicted, once
    whole = append(model, full, after)
    for tokens in ([row[:5] for row in after], [row[5:6] for row in after], [row[6:] for row in after]):
        logits = append(model, ragged, tokens)
    for row, prompt in enumerate(prompts):
        wanted = reference(model, [(len(prompt), kept[row])], prompt + after[row])[-1]
        assert (logits[row] - wanted).abs().max() <= EXACT
        assert (whole[row] - reference(model, [], prompt + after[row])[-1]).abs().max() <= EXACT
        assert (whole[row] - wanted).abs().max() > 1e-3


def test_an_eviction_between_turns(model):
    prompt, turn, question = rows([50])[0], rows([30], seed=1)[0], rows([9], seed=2)[0]
    ragged = compress(model, [prompt], eviction=eviction(0.5), later=eviction(0.3))
    first = find_kept(ragged, 0)
    append(model, ragged, [turn])
    ragged.evict_again()
    logits = append(model, ragged, [question])[0]
    then = {layer: [at[at < 80] for at in heads] for layer, heads in find_kept(ragged, 0).items()}
    wanted = reference(model, [(50, first), (80, then)], prompt + turn + question)[-1]
    assert (logits - wanted).abs().max() <= EXACT


def test_forks_and_files(model, tmp_path):
    prompts, question = rows([50, 33]), rows([9, 9], seed=1)
    alone = compress(model, prompts, eviction=eviction(0.3))
    cache_file.save(alone, tmp_path / "saved")
    forked = compress(model, prompts).fork_for(eviction(0.3))
    wanted = answer(model, alone, question, 6).tokens
    assert answer(model, forked, question, 6).tokens == wanted
    assert answer(model, cache_file.load(tmp_path / "saved", model), question, 6).tokens == wanted


def test_generate_gives_identical_tokens(model):
    ids = torch.tensor(rows([60]))
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    ours = model.generate(ids, past_key_values=RaggedCache(model), **options)
    model.set_attn_implementation("sdpa")
    stock = model.generate(ids, **options)
    use_ragged_attention(model)
    assert ours.tolist() == stock.tolist()


def test_an_eviction_while_tokens_come_in_is_refused(model):
    """The layer that is read would have lost entries before the layers that read it came to attend."""
    for wrong in (
        lambda: stream(model, rows([60]), eviction(0.3)),
        lambda: compress(model, rows([60]), later=eviction(0.3), every=8),
    ):
        with pytest.raises(ValueError, match="read the keys and values of an earlier layer"):
            wrong()


def test_heads_of_different_width():
    """gemma4: full attention has wider heads, and its config answers no question about "the" width."""
    model = make("gemma4_text")
    assert [(g.kv_heads, g.key_dim) for g in measure_geometry(model)] == [(2, 8), (2, 16)] * 2
    assert count_kv_heads(model) == 2
    other = AutoConfig.for_model("gemma4_text", **SMALL, **{**KINDS["gemma4_text"], "global_head_dim": 24})
    assert hash_config(model.config) != hash_config(other)
