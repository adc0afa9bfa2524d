"""A checkpoint with its KV heads repeated is the same function, and SnapKV on it is the original repository's."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from baselines.snapkv import SnapKV
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import compress
from lukv.model import load
from models import expand
from tests import random_model

IDS = torch.randint(1, 60, (1, 90), generator=torch.Generator().manual_seed(0))


def grouped(family):
    """Six query heads on two KV heads, float64; biases and norms are not what they start as."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family, vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=2, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, pad_token_id=None,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).eval()
    for weight in model.parameters():
        weight.data += 0.2 * torch.randn_like(weight)
    return model


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma2"])
def test_the_same_function(family):
    model = grouped(family)
    twin = expand.expand(model)
    assert twin.config.num_key_value_heads == 6
    assert model.config.num_key_value_heads == 2
    with torch.no_grad():
        torch.testing.assert_close(twin(IDS).logits, model(IDS).logits, rtol=1e-10, atol=1e-10)


def test_snapkv_scores_every_query_head_for_itself():
    model, scorer = grouped("llama"), SnapKV()
    twin = expand.expand(model)
    for one in (model, twin):
        use_ragged_attention(one)
    few, many = (compress(one, IDS, observe=[scorer]) for one in (model, twin))
    assert many.nbytes == 3 * few.nbytes
    for index, (a, b) in enumerate(zip(few.evictable, many.evictable, strict=True)):
        view = a.view(0, *few.view_entries(index, 0), scorer)
        alone = []
        for head in range(6):  # one query head on its KV head, as if there were no others
            kv = slice(head // 3, head // 3 + 1)
            observed = view.observed[head : head + 1]
            alone.append(
                scorer.score(
                    replace(view, keys=view.keys[kv], values=view.values[kv], query_heads=1, observed=observed)
                )
            )
        scores = scorer.score(b.view(0, *many.view_entries(index, 0), scorer))
        torch.testing.assert_close(scores, torch.cat(alone), rtol=1e-6, atol=1e-9)
        assert not torch.allclose(scores[0], scores[1])


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    source = random_model.save(tmp_path / "grouped")
    monkeypatch.setattr(sys, "argv", ["expand", str(source), str(tmp_path / "all")])
    expand.main()
    assert "4 KV heads a layer instead of 2" in capsys.readouterr().out
    few, many = load(source, dtype="float32"), load(tmp_path / "all", dtype="float32")
    assert many.kv_heads == 4
    assert many.eos_ids == few.eos_ids
    assert many.prompt_ids("some context", "and a question", "so") == few.prompt_ids(
        "some context", "and a question", "so"
    )
    with pytest.raises(SystemExit):
        expand.main()
    assert "exists already" in capsys.readouterr().err


def test_fused_projections_are_refused():
    config = AutoConfig.for_model(
        "phi3", vocab_size=61, hidden_size=48, intermediate_size=64, num_hidden_layers=1, num_attention_heads=6,
        num_key_value_heads=2, pad_token_id=None,
    )  # fmt: skip
    with pytest.raises(ValueError, match="phi3 has no k_proj and v_proj"):
        expand.expand(AutoModelForCausalLM.from_config(config))
