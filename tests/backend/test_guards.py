"""What would silently give wrong answers is one clear error."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from lukv.backend.attention import attend, use_ragged_attention
from lukv.backend.cache import RaggedCache
from lukv.backend.generate import append, compress
from lukv.backend.lengths import find_lengths
from lukv.backend.options import CACHE
from lukv.backend.padding import pad_left
from lukv.backend.self_check import check_model
from tests.reference.dense_reference import eviction, rows, tiny_model

MODEL = tiny_model("llama", layers=1)
PROMPT = torch.tensor(rows([20]))


@pytest.fixture
def sdpa():
    MODEL.set_attn_implementation("sdpa")
    yield
    use_ragged_attention(MODEL)


@pytest.mark.usefixtures("sdpa")
def test_our_cache_under_another_attention():
    with pytest.raises(
        RuntimeError, match=r"call lukv.backend.attention.use_ragged_attention\(model\) first \(now: sdpa\)"
    ):
        MODEL(PROMPT, past_key_values=RaggedCache(MODEL))


def test_another_cache_under_our_attention():
    cache = DynamicCache(config=MODEL.config)
    MODEL(PROMPT, past_key_values=cache)
    with pytest.raises(RuntimeError, match="the model got another cache than a RaggedCache"):
        MODEL(PROMPT[:, :1], past_key_values=cache)


def phi3(length: int):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [2.0] * 8,
        "original_max_position_embeddings": length,
    }
    return tiny_model(
        "phi3",
        layers=1,
        max_position_embeddings=4 * length,
        original_max_position_embeddings=length,
        rope_parameters=rope,
    )


def test_phi3_drops_a_cache_when_generating_from_a_long_prompt():
    model = phi3(16)
    with pytest.raises(RuntimeError, match="dropped the one it was given"):
        model.generate(PROMPT, past_key_values=RaggedCache(model), max_new_tokens=4, do_sample=False)
    append(model, compress(model, PROMPT, eviction=eviction(0.5)), rows([3]))  # without generate() it is fine


def test_phi3_growing_past_its_original_length():
    model = phi3(24)
    cache = compress(model, PROMPT)
    append(model, cache, rows([4]))
    with pytest.raises(ValueError, match="grows past 24 tokens, where phi3 changes its rotary factors"):
        append(model, cache, rows([1]))


def test_rows_on_both_sides_of_the_length_where_rotary_factors_change():
    model = phi3(24)
    with pytest.raises(ValueError, match="shorter and longer than 24 tokens, where phi3 changes its rotary factors"):
        compress(model, rows([30, 20]))
    compress(model, rows([30, 25]))
    compress(model, rows([24, 20]))


def test_dynamic_rotary_factors_past_the_original_length():
    """What came before would decide the factors: up to there, results depend on the row alone."""
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_model("llama", layers=1, rope_parameters=rope, max_position_embeddings=32)
    row, more = rows([28])[0], rows([3], seed=1)
    first = append(model, compress(model, [row]), more)
    model(torch.tensor(rows([60])))  # without a cache nothing is wrong
    model(torch.tensor([row]))  # takes the factors back, but not in transformers 5.2
    if not torch.equal(model.model.rotary_emb.inv_freq, model.model.rotary_emb.original_inv_freq):
        with pytest.raises(RuntimeError, match=r"left its rotary factors in this llama, .*: load the model again"):
            compress(model, [row])
        model = tiny_model("llama", layers=1, rope_parameters=rope, max_position_embeddings=32)
    assert torch.equal(append(model, compress(model, [row]), more), first)
    cache = compress(model, [row])
    append(model, cache, more)
    with pytest.raises(ValueError, match=r"a row has 32 tokens, this llama takes at most 31 here: .*'dynamic'"):
        append(model, cache, rows([1]))
    with pytest.raises(ValueError, match="at most 31 here"):
        compress(model, rows([10, 32]))


def test_dynamic_factors_of_one_type_of_layer():
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    kinds = {"full_attention": {**rope, "rope_type": "dynamic", "factor": 2.0}, "sliding_attention": rope}
    config = AutoConfig.for_model("gemma3_text", max_position_embeddings=32, rope_parameters=kinds)
    assert find_lengths(config).limit == 31


def test_a_window_as_wide_as_the_positions():
    """Up to the window's size it is none; what is longer would need it."""
    model = tiny_model("mistral", layers=1, sliding_window=32, max_position_embeddings=32)
    ids = torch.tensor(rows([32]))
    cache = compress(model, ids[:, :25])
    logits = append(model, cache, ids[:, 25:])
    assert (logits - model(ids).logits[:, -1]).abs().max() <= 1e-9
    with pytest.raises(ValueError, match=r"a row has 33 tokens, this mistral takes at most 32 here: .*window"):
        append(model, cache, rows([1]))
    with pytest.raises(ValueError, match="a row has 40 tokens"):
        compress(model, rows([40]))


@pytest.mark.parametrize(("window", "built"), [(16, "full attention"), (None, "a window of 24")])
def test_a_window_that_differs_from_the_config(window, built):
    """What the attention call says against what the layer was built for."""
    model = tiny_model("gemma2", layers=2, sliding_window=24)
    for layer in model.model.layers:
        layer.self_attn.sliding_window = 16 if window or layer.self_attn.sliding_window else None
    kinds = ["full_attention"] * 2 if window else ["sliding_attention", "full_attention"]
    model.config.layer_types = kinds
    if window:
        compress(model, rows([16]))
    with pytest.raises(ValueError, match=f"attends to the last 16 tokens, its config says {built}"):
        compress(model, rows([17]))


def test_attention_twice_a_layer():
    """diffllama attends over halves of its values: what it gives to the cache is not what it attends over."""
    options = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = AutoConfig.for_model("diffllama", vocab_size=97, num_key_value_heads=2, **options)
    model = AutoModelForCausalLM.from_config(config).eval()
    if not model._can_set_attn_implementation():
        pytest.skip("an attention of its own in this transformers")
    use_ragged_attention(model)
    with pytest.raises(NotImplementedError, match="DiffLlamaAttention attends over other values than those it gave"):
        compress(model, PROMPT)
    with pytest.raises(ValueError, match="this diffllama cannot be run: DiffLlamaAttention"):
        check_model(model)


def test_keys_of_an_earlier_forward():
    model = tiny_model("llama", layers=1)
    cache = RaggedCache(model)
    query, key, value = torch.zeros(1, 4, 9, 8), torch.zeros(1, 2, 9, 8), torch.zeros(1, 2, 9, 8)
    old = cache.update(key, value, 0)
    attend(torch.nn.Module(), query, *old, None)
    new = cache.update(key.clone(), value.clone(), 0)
    attend(torch.nn.Module(), query, *new, None)
    with pytest.raises(RuntimeError, match="keys of an earlier forward"):
        attend(torch.nn.Module(), query, *old, None)


def test_keys_that_do_not_reach_the_attention_function():
    cache = RaggedCache(MODEL)
    key, value = cache.update(torch.zeros(1, 2, 9, 8), torch.zeros(1, 2, 9, 8), 0)
    attend(torch.nn.Module(), torch.zeros(1, 4, 9, 8), key + 0, value, None)
    with pytest.raises(RuntimeError, match="this llama did not hand the keys"):
        cache.update(torch.zeros(1, 2, 1, 8), torch.zeros(1, 2, 1, 8), 0)


def test_a_model_that_drops_the_cache(monkeypatch):
    forward = MODEL.forward
    monkeypatch.setattr(MODEL, "forward", lambda **kwargs: forward(**{**kwargs, CACHE: None}))
    with pytest.raises(RuntimeError, match="LlamaForCausalLM dropped the cache it was given"):
        compress(MODEL, PROMPT)


def test_a_generation_config_that_cuts_the_prompt(monkeypatch):
    monkeypatch.setattr(MODEL.generation_config, "prefill_chunk_size", 8)
    with pytest.raises(ValueError, match=r"prefill_chunk_size.*give prompt_columns="):
        RaggedCache(MODEL, eviction(0.5))
    compress(MODEL, PROMPT, eviction=eviction(0.5))  # knows the whole prompt


def test_attention_sinks():
    config = AutoConfig.for_model(
        "gpt_oss",
        vocab_size=97,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        pad_token_id=0,
        eos_token_id=1,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=16,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    use_ragged_attention(model)
    with pytest.raises(NotImplementedError, match="has attention sinks"):
        compress(model, PROMPT)


def test_beam_search():
    with pytest.raises(NotImplementedError, match="beam search is not supported"):
        MODEL.generate(PROMPT, past_key_values=RaggedCache(MODEL), num_beams=2, max_new_tokens=4, do_sample=False)
    with pytest.raises(ValueError, match="this cache holds 1 sequence, the input has 2: beam search"):
        MODEL.generate(PROMPT, past_key_values=compress(MODEL, PROMPT[:, :9]), num_beams=2, max_new_tokens=4)


def test_assisted_decoding():
    with pytest.raises((NotImplementedError, ValueError), match=r"assisted|crop"):
        MODEL.generate(
            PROMPT, past_key_values=RaggedCache(MODEL), prompt_lookup_num_tokens=3, max_new_tokens=8, do_sample=False
        )


def test_output_attentions():
    with pytest.raises((NotImplementedError, ValueError), match="output_attentions"):
        MODEL(PROMPT, past_key_values=RaggedCache(MODEL), output_attentions=True)


def test_all_layers_sliding():
    with pytest.raises(ValueError, match="every layer of this mistral has a sliding window of 24: nothing to evict"):
        tiny_model("mistral", layers=1, sliding_window=24)
    RaggedCache(tiny_model("mistral", layers=1, sliding_window=512))  # a window nothing can leave is full attention


def test_other_kinds_of_layers():
    model = tiny_model("llama", layers=1)
    model.config.layer_types = ["linear_attention"]
    with pytest.raises(ValueError, match="llama has linear_attention layers"):
        RaggedCache(model)


def test_dropout_and_custom_masks():
    cache = RaggedCache(MODEL)
    with pytest.raises(NotImplementedError, match="only 2-D attention masks"):
        MODEL(PROMPT, past_key_values=cache, attention_mask=torch.zeros(1, 1, 20, 20))
    model = tiny_model("llama", layers=1, attention_dropout=0.1).train()
    with pytest.raises(NotImplementedError, match="dropout is not supported"):
        model(PROMPT)


def test_masks_that_do_not_fit():
    cache = compress(MODEL, PROMPT, eviction=eviction(0.5))
    with pytest.raises(ValueError, match="the attention mask has 3 columns, the cache and the input have 23"):
        MODEL(PROMPT[:, :3], past_key_values=cache, attention_mask=torch.ones(1, 3))
    hole = torch.tensor([[1] * 8 + [0] * 4 + [1] * 8])
    with pytest.raises(ValueError, match="has a hole"):
        MODEL(PROMPT, past_key_values=RaggedCache(MODEL), attention_mask=hole)
    with pytest.raises(ValueError, match="row 0 of the batch has no token"):
        MODEL(PROMPT, past_key_values=RaggedCache(MODEL), attention_mask=torch.zeros(1, 20))


def test_a_wrong_number_of_rows():
    cache = compress(MODEL, rows([9, 12]))
    with pytest.raises(ValueError, match="this cache holds 2 sequences, the input has 1"):
        append(MODEL, cache, rows([3]))


def test_empty_rows_and_chunks():
    for empty in ([], [[]], [[1, 2], []]):
        with pytest.raises(ValueError, match="at least one token"):
            pad_left(empty, None, "cpu")
    with pytest.raises(ValueError, match="chunk=0 must be at least 1"):
        compress(MODEL, PROMPT, chunk=0)


def test_states_that_are_not_there():
    cache = RaggedCache(MODEL)
    reads = (lambda: cache.kept_counts, lambda: cache.view_entries(0, 0), lambda: cache.read_queries(0), cache.state)
    for call in (cache.rollback, *reads):
        with pytest.raises(RuntimeError, match=r"prompt|recorded"):
            call()
    with pytest.raises(RuntimeError, match="later=Eviction"):
        cache.evict_again()
    with pytest.raises(ValueError, match="later=Eviction"):
        RaggedCache(MODEL, every=8)


def test_an_impossible_kernel_is_refused_before_the_prompt_is_run():
    with pytest.raises(ValueError, match="attention=fa2 cannot run here: fa2 needs a CUDA device"):
        compress(MODEL, PROMPT, attention="fa2")
