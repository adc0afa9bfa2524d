"""Families whose configs and modules call things by other names, or store other shapes than llama."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from lukv.backend import cache_file
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import append, compress
from lukv.backend.geometry import count_kv_heads, measure_geometry
from lukv.backend.self_check import check_model
from tests.reference.dense_reference import eviction, rows

COMMON = {"vocab_size": 97, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WIDE = {**COMMON, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
FAMILIES = {
    "gpt2": ({**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4}, 4),
    "opt": ({**WIDE, "ffn_dim": 48, "word_embed_proj_dim": 32}, 4),
    "gpt_neox": ({**WIDE, "intermediate_size": 48}, 4),
    "gpt_bigcode": ({**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "multi_query": True}, 1),
    "llama": ({**WIDE, "intermediate_size": 48, "num_key_value_heads": 2}, 2),
    "afmoe": ({**WIDE, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16,
               "num_experts": 4, "num_experts_per_tok": 2, "num_dense_layers": 1, "num_shared_experts": 1,
               "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 16}, 2),
}  # fmt: skip
"""model_type -> a small config, KV heads of each layer."""


@pytest.fixture(params=FAMILIES, scope="module")
def family(request: pytest.FixtureRequest):
    options, kv_heads = FAMILIES[request.param]
    try:
        config = AutoConfig.for_model(request.param, **options)
    except ValueError:
        pytest.skip(f"this transformers has no {request.param}")
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    use_ragged_attention(model)
    return model, kv_heads


def test_geometry_is_that_of_the_modules(family):
    model, kv_heads = family
    assert count_kv_heads(model) == kv_heads
    assert [(g.kv_heads, g.key_dim, g.value_dim) for g in measure_geometry(model)] == [(kv_heads, 8, 8)] * 2


def test_saved_and_loaded(family, tmp_path):
    model, _ = family
    prompts, question = rows([40, 31]), rows([5, 3], seed=1)
    cache = compress(model, prompts, eviction=eviction(0.4))
    cache_file.save(cache, tmp_path / "saved")
    loaded = cache_file.load(tmp_path / "saved", model)
    assert torch.equal(append(model, loaded, question), append(model, cache, question))
    assert (loaded.kept_counts == cache.kept_counts).all()


def test_questions_of_several_tokens(family):
    """Some models (afmoe) take a view of what attention returns, as it is contiguous in transformers' own functions."""
    model, _ = family
    prompts = rows([40, 31])
    for questions in (rows([3, 3], seed=1), rows([3, 2], seed=1), rows([1, 1], seed=1)):
        together = append(model, compress(model, prompts), questions)
        for row, (prompt, question) in enumerate(zip(prompts, questions, strict=True)):
            whole = model(torch.tensor([prompt + question]), use_cache=False).logits[0, -1]
            assert torch.allclose(together[row], whole, atol=1e-5)
    check_model(model)
