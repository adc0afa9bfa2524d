"""Scorers that undo the rotation of keys run only on models that rotate as the scorers assume."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, NemotronForCausalLM

from baselines.expected_attention import ExpectedAttention
from baselines.keydiff import KeyDiff
from lukv.allocation import Budget, Uniform
from lukv.backend.attention import use_ragged_attention
from lukv.backend.generate import compress, stream
from lukv.backend.rope_check import find_mismatched_layers
from lukv.ops import rotate
from lukv.selection import Eviction, Protection
from tests.reference.dense_reference import FAMILIES, VOCABULARY, rows, tiny_model

OTHERS = {"glm4": [0, 1, 2, 3], "cohere": [0, 1, 2, 3], "smollm3": [3]}
"""Layers that rotate pairs of neighbours, and a last layer without positions."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "nemotron", "granite", *OTHERS])
def test_layers_that_rotate_differently_are_found(family, dtype):
    if family == "nemotron" and not NemotronForCausalLM._can_set_attn_implementation():
        pytest.skip("an attention of its own in this transformers")
    model = tiny_model(family, dtype)
    assert find_mismatched_layers(model) == OTHERS.get(family, [])


@pytest.mark.parametrize("family", OTHERS)
def test_a_scorer_that_undoes_the_rotation_is_refused(family):
    model = tiny_model(family)
    wanted = Eviction(ExpectedAttention(), Uniform(), Protection(), Budget(share=0.5))
    message = rf"expected_attention .* layer {OTHERS[family][0]} of this {family}"
    for wrong in (
        lambda: compress(model, rows([20]), eviction=wanted),
        lambda: compress(model, rows([20]), observe=[ExpectedAttention()]),
        lambda: compress(model, rows([20]), later=wanted),
        lambda: stream(model, rows([20]), wanted),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
    compress(model, rows([20]), eviction=Eviction(KeyDiff(), Uniform(), Protection(), Budget(share=0.5)))


def test_a_model_without_rotary_positions_has_no_mismatch():
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=1)
    model = GPT2LMHeadModel(config).eval()
    use_ragged_attention(model)
    assert find_mismatched_layers(model) == []
    wanted = Eviction(ExpectedAttention(), Uniform(), Protection(), Budget(share=0.5))
    assert (compress(model, rows([40]), eviction=wanted).kept_counts == 20).all()


def test_any_positions_have_the_angles_of_the_whole_prompt():
    """Frequencies that depend on the length: 100 tokens, where 64 are what the model was trained with."""
    parameters = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0}
    parameters |= {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 64}
    model = tiny_model("phi3", rope_parameters=parameters, original_max_position_embeddings=64)
    whole = compress(model, rows([100]))
    rope = whole.layers[0].scores.rope
    cos, sin = rope(torch.arange(100))
    for part in (slice(0, 10), slice(40, 90)):
        assert torch.equal(rope(torch.arange(100)[part])[0], cos[part])
        assert torch.equal(rope(torch.arange(100)[part])[1], sin[part])
    same = compress(model, [[5] * 100]).view_entries(0, 0)[0].float()  # one token again and again
    factor = cos[0, 0]
    assert torch.allclose(rotate(same[:, :1] / factor, cos[57], sin[57]), same[:, 57:58], atol=1e-4)


def test_asking_for_later_positions_leaves_the_model_as_it_is():
    parameters = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    model = tiny_model("llama", rope_parameters=parameters, max_position_embeddings=64)
    prompt = rows([50])
    before = compress(model, prompt)
    frequencies = model.model.rotary_emb.inv_freq.clone()
    before.layers[0].scores.rope(torch.arange(50, 562))
    assert torch.equal(model.model.rotary_emb.inv_freq, frequencies)
