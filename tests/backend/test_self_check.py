"""A loaded model is compared with transformers' own attention, layer by layer, before it answers anything."""

from __future__ import annotations

from functools import cache

import pytest
import torch

from lukv.backend import self_check
from lukv.backend.cache import RaggedCache
from lukv.backend.options import ATTENTION
from lukv.backend.self_check import check_model, find_tolerance, measure_differences
from tests.reference.dense_reference import FAMILIES, tiny_model

model_of = cache(tiny_model)


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(self_check, "checked", set())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_passes_by_far(family, dtype):
    model = model_of(family, dtype)
    differences = measure_differences(model)
    assert len(differences) == 5  # four layers and the logits
    assert max(differences) <= find_tolerance(dtype) / 2
    assert model.config._attn_implementation == ATTENTION


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("wrong", [0, 2])
def test_a_layer_that_attends_otherwise_is_named(monkeypatch, wrong, dtype):
    """One layer attends with another scale when our cache is there."""
    model = tiny_model("llama", dtype)
    attention = model.model.layers[wrong].self_attn
    forward = attention.forward

    def change(*args, **kwargs):  # transformers 5.24 calls the cache `cache`, earlier ones `past_key_values`
        ours = any(isinstance(given, RaggedCache) for given in kwargs.values())
        monkeypatch.setattr(attention, "scaling", 0.75 if ours else 0.25)
        return forward(*args, **kwargs)

    monkeypatch.setattr(attention, "forward", change)
    with pytest.raises(ValueError, match=f"this llama answers otherwise .* from layer {wrong} of 4 on"):
        check_model(model)


def test_a_fault_in_the_second_forward_alone_is_found(monkeypatch):
    """The prompt is right; the positions of what comes after it are three too small."""
    model = tiny_model("llama", torch.float32)
    real = self_check.RaggedCache

    class Forgetful(real):
        def get_seq_length(self, *args, **kwargs):
            return max(0, super().get_seq_length(*args, **kwargs) - 3)

    monkeypatch.setattr(self_check, "RaggedCache", Forgetful)
    with pytest.raises(ValueError, match="from layer 0 of 4 on"):
        check_model(model)


def test_it_runs_once_for_a_config(monkeypatch):
    runs = []
    real = measure_differences
    monkeypatch.setattr(self_check, "measure_differences", lambda model: runs.append(model) or real(model))
    for _ in range(2):
        check_model(tiny_model("llama", torch.float32, layers=1))
    assert len(runs) == 1
    check_model(tiny_model("llama", torch.float64, layers=1))
    check_model(tiny_model("llama", torch.float32, layers=2))
    assert len(runs) == 3
