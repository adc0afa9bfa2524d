"""A model in whatever wrapping: it works exactly, or is refused in one line before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

import lukv
from lukv.backend.config import hash_weights
from lukv.conf import ROOT
from tests.checkpoints import gguf_files

TEXT = "The cat sat on the mat. " * 6
PLACES = ("model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm", "model.rotary_emb", "lm_head")


def load(folder: Path, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options).eval()


def on_disk(folder: Path, scratch: Path, *places: str) -> PreTrainedModel:
    device_map = {place: "disk" if place in places else "cpu" for place in PLACES}
    return load(folder, device_map=device_map, offload_folder=str(scratch))


class EightBits(torch.nn.Module):
    """A linear layer whose weights have eight bits, as the packages that quantize weights put into a model."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.packed * self.scale, self.bias)


def quantize_weights(model: PreTrainedModel) -> PreTrainedModel:
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, linear in list(part.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    setattr(part, name, EightBits(linear))
    return model


def quantize_all(model: PreTrainedModel) -> PreTrainedModel:
    """Weights and activations, these with a scale for all tokens of a forward, by torch itself."""
    return torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)


def tie(folder: Path) -> PreTrainedModel:
    model = load(folder)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.get_input_embeddings().weight
    return model


WORK: dict[str, Callable[[Path, Path], PreTrainedModel]] = {
    "tied": lambda folder, scratch: tie(folder),
    "device_map": lambda folder, scratch: load(folder, device_map={"": "cpu"}),
    "a layer on disk": lambda folder, scratch: on_disk(folder, scratch, "model.layers.1"),
    "eight bits": lambda folder, scratch: quantize_weights(load(folder)),
    "bfloat16": lambda folder, scratch: load(folder, dtype=torch.bfloat16),
}


def check_works(model: Any, words: Any) -> None:
    """Keeping everything it says what it says by itself; evicted, it says something else, and the library all works."""
    inputs = {"input_ids": words(TEXT, return_tensors="pt")["input_ids"]}
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 2}
    plain = model.generate(**inputs, **options)
    with lukv.eviction(model, None):
        assert torch.equal(model.generate(**inputs, **options), plain)
    method = lukv.method("snapkv", 0.3, model)
    with lukv.eviction(model, method):
        assert not torch.equal(model.generate(**inputs, **options), plain)
    assert torch.equal(model.generate(**inputs, **options), plain)
    cache = lukv.compress(model, words, TEXT, method)
    assert cache.nbytes < 0.31 * cache.full_nbytes
    assert isinstance(lukv.answer(model, words, cache, "Where?", 8), str)


@pytest.fixture
def words(model: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast.from_pretrained(model)


@pytest.mark.parametrize("kind", WORK)
def test_it_works_exactly(kind: str, model: Path, words: Any, tmp_path: Path) -> None:
    check_works(WORK[kind](model, tmp_path / "disk"), words)


@pytest.mark.skipif(not hasattr(transformers, "GgufConfig"), reason="this transformers reads no GGUF file's tokenizer")
def test_a_gguf_file_that_transformers_itself_has_read(tmp_path: Path) -> None:
    """Packed where there are kernels for it, else unpacked."""
    gguf_files.write(tmp_path / "packed.gguf")
    network = load(tmp_path, gguf_file="packed.gguf", quantization_config=transformers.GgufConfig(dequantize=False))
    check_works(network, PreTrainedTokenizerFast.from_pretrained(tmp_path, gguf_file="packed.gguf"))


def test_lora(model: Path, words: Any) -> None:
    """The adapter counts, wrapped and merged, and the wrapped model is given back as it was."""
    peft = pytest.importorskip("peft", reason="needs the package peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, r=4, target_modules=["q_proj", "v_proj"])
    adapted = peft.get_peft_model(load(model), config).eval()
    check_works(adapted, words)
    method = lukv.method("snapkv", 0.3)
    wrapped = lukv.answer(adapted, words, lukv.compress(adapted, words, TEXT, method), "Where?", 8)
    merged = adapted.merge_and_unload()
    assert lukv.answer(merged, words, lukv.compress(merged, words, TEXT, method), "Where?", 8) == wrapped


def compile_in_place(model: PreTrainedModel) -> PreTrainedModel:
    model.compile(backend="eager")
    return model


REFUSED: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "compiled": (
        lambda folder, scratch: torch.compile(load(folder), backend="eager"),
        r"is compiled \(torch.compile\)",
    ),
    "compiled in place": (lambda folder, scratch: compile_in_place(load(folder)), r"is compiled \(torch.compile\)"),
    "the embedding on disk": (
        lambda folder, scratch: on_disk(folder, scratch, "model.embed_tokens"),
        "first weights are on disk: give the embedding a device",
    ),
    "quantized activations": (
        lambda folder, scratch: quantize_all(load(ROOT / "models" / "tiny", dtype=torch.float32)),
        "something else where the same tokens come in two forwards, also by itself",
    ),
    "training": (lambda folder, scratch: load(folder).train(), "training mode"),
    "no model": (lambda folder, scratch: torch.nn.Linear(2, 2), "a transformers model is expected, this is a Linear"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_it_is_refused(kind: str, model: Path, words: Any, tmp_path: Path) -> None:
    make, says = REFUSED[kind]
    network = make(model, tmp_path / "disk")
    method = lukv.method("snapkv", 0.3)
    with pytest.raises(ValueError, match=says):
        lukv.method("snapkv", 0.3, network)
    with pytest.raises(ValueError, match=says), lukv.eviction(network, method):
        pass
    with pytest.raises(ValueError, match=says):
        lukv.compress(network, words, TEXT, method)


def test_quantized_weights_are_another_model_to_a_table() -> None:
    tiny = ROOT / "models" / "tiny"
    network = quantize_weights(load(tiny, dtype=torch.float32))
    assert hash_weights(network) != hash_weights(load(tiny))
    with pytest.raises(ValueError, match=r"was made for weights_hash .* allocator.any_weights=true"):
        lukv.method("lukv", 0.2, network)
    assert lukv.method("lukv", 0.2, network, settings={"allocator.any_weights": True}) is not None
