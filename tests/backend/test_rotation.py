"""Scorers that turn keys back run only on models that turn them as they think."""

from __future__ import annotations

import pytest
import torch

from baselines.expected_attention import ExpectedAttention
from baselines.keydiff import KeyDiff
from lukv.allocation import Budget, Uniform
from lukv.backend.generate import compress, stream
from lukv.backend.rotation import turned_otherwise
from lukv.backend.selection import Eviction, Protection
from tests.backend.dense_reference import FAMILIES, rows, tiny_model

OTHERS = {"glm4": [0, 1, 2, 3], "cohere": [0, 1, 2, 3], "smollm3": [3]}
"""Pairs of neighbours, and a last layer without positions."""


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", [*FAMILIES, "nemotron", "granite", *OTHERS])
def test_layers_that_turn_otherwise_are_found(family, dtype):
    assert turned_otherwise(tiny_model(family, dtype)) == OTHERS.get(family, [])


@pytest.mark.parametrize("family", OTHERS)
def test_a_scorer_that_turns_keys_back_is_refused(family):
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
