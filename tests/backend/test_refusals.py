"""A model that this backend cannot run is refused in one line that names the reason, by its config if that says so."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lukv.backend.architecture import check_architecture, find_network
from lukv.backend.attention import use_ragged_attention
from lukv.backend.cache import RaggedCache
from lukv.backend.generate import append, compress
from lukv.backend.options import CACHE
from lukv.backend.self_check import check_model
from tests.reference.dense_reference import rows, tiny_model

SMALL = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
OWN_CODE = r"computes attention in code of its own \({}\)"
REASONS = [
    ("bloom", {}, OWN_CODE.format("BloomForCausalLM")),
    ("mpt", {}, OWN_CODE.format("MptForCausalLM")),
    ("gptj", {}, OWN_CODE.format("GPTJForCausalLM")),
    ("xglm", {}, OWN_CODE.format("XGLMForCausalLM")),
    ("deepseek_v2", {}, r"multi-head latent attention \(kv_lora_rank\)"),
    ("deepseek_v3", {}, r"multi-head latent attention \(kv_lora_rank\)"),
    ("mamba", {}, "recurrent|a state of fixed size"),
    ("jamba", {}, "recurrent|a state of fixed size"),
    ("rwkv", {}, "rwkv is recurrent"),
    ("qwen3_next", {}, "has linear_attention layers, which keep a state of fixed size"),
    ("llama4_text", {}, "has chunked_attention layers, which see a chunk of the input"),
    ("bart", {}, "bart is an encoder-decoder model"),
    ("mllama", {}, "has cross-attention layers"),
    ("mistral", {"sliding_window": 24}, "every layer of this mistral has a sliding window of 24: nothing to evict"),
]


@pytest.mark.parametrize(("kind", "options", "reason"), REASONS, ids=[kind for kind, _, _ in REASONS])
def test_the_config_says_why(kind, options, reason):
    config = AutoConfig.for_model(kind, **options)
    network = find_network(config)
    if "code of its own" in reason and network is not None and network._can_set_attn_implementation():
        pytest.skip("newer transformers, such as 5.24 for gptj, let this type's attention be replaced")
    with pytest.raises(ValueError, match=reason) as caught:
        check_architecture(config)
    assert "\n" not in str(caught.value)
    assert kind.split("_")[0] in str(caught.value)


@pytest.mark.parametrize("kind", ["llama", "mistral", "gemma3", "gemma3_text", "phi3", "gpt2", "stablelm"])
def test_what_runs_is_not_refused(kind):
    options = {"sliding_window": None} if kind == "mistral" else {}
    check_architecture(AutoConfig.for_model(kind, **options))


def test_a_model_with_code_of_its_own_is_refused_before_it_is_changed():
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("bloom", **SMALL))
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="bloom computes attention in code of its own"):
        use_ragged_attention(model)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_model(in_place):
    model = tiny_model("llama", layers=1)
    if in_place:
        model.compile(backend="eager")
    else:
        model = torch.compile(model, backend="eager")
    for call in (compress, append):
        with pytest.raises(ValueError, match=r"the model is compiled \(torch.compile\)"):
            call(model, *([None] if call is append else []), rows([5]))
    with pytest.raises(ValueError, match="is compiled"):
        RaggedCache(model)


class Adapted(nn.Module):
    """A model in PEFT's wrapper, as far as it can be seen from outside."""

    def __init__(self, model: nn.Module, prompt_learning: bool) -> None:
        super().__init__()
        self.model = model
        self.peft_config = {"default": SimpleNamespace(is_prompt_learning=prompt_learning)}


def test_a_prompt_tuned_model():
    model = tiny_model("llama", layers=1)
    for call in (use_ragged_attention, RaggedCache, lambda adapted: compress(adapted, rows([5]))):
        with pytest.raises(ValueError, match="PEFT adapter default, which puts learned tokens or keys before"):
            call(Adapted(model, prompt_learning=True))
    compress(Adapted(model, prompt_learning=False), rows([5]))


@pytest.mark.parametrize("method", ["PromptTuningConfig", "PrefixTuningConfig"])
def test_a_model_tuned_by_peft_itself(method):
    peft = pytest.importorskip("peft", reason="needs the package peft")
    config = getattr(peft, method)(task_type="CAUSAL_LM", num_virtual_tokens=4)
    with pytest.raises(ValueError, match="PEFT adapter default"):
        compress(peft.get_peft_model(tiny_model("llama", torch.float32, layers=1), config), rows([5]))


def test_positions_that_do_not_start_at_0():
    """RoBERTa counts from the padding token's id on."""
    config = AutoConfig.for_model("roberta", is_decoder=True, intermediate_size=48, **SMALL)
    model = AutoModelForCausalLM.from_config(config).eval()
    use_ragged_attention(model)
    with pytest.raises(ValueError, match=r"this roberta counts positions otherwise: the first token .* position 0"):
        check_model(model)


def test_keys_that_are_repeated_on_their_way_to_the_attention_function():
    """Already the first forward is refused, where they would be attended to but not stored."""
    options = {"intermediate_size": 48, "kv_channels": 8, "num_key_value_heads": 2, "num_local_experts": 2}
    config = AutoConfig.for_model("jetmoe", num_experts_per_tok=2, **options, **SMALL)
    model = AutoModelForCausalLM.from_config(config).eval()
    use_ragged_attention(model)
    with pytest.raises(NotImplementedError, match="this jetmoe did not hand the keys"):
        compress(model, rows([5]))
    with pytest.raises(ValueError, match=r"this jetmoe cannot be run: .* did not hand the keys"):
        check_model(model)


def test_a_model_that_takes_what_our_cache_lacks(monkeypatch):
    model = tiny_model("llama", layers=1)
    forward = model.forward

    def ask(**kwargs):
        if isinstance(kwargs.get(CACHE), RaggedCache):
            kwargs[CACHE].no_such_thing()
        return forward(**kwargs)

    monkeypatch.setattr(model, "forward", ask)
    with pytest.raises(ValueError, match=r"this llama fails with the backend's cache: .*no_such_thing"):
        check_model(model)
