"""Scorers that read the prompt's own attention, against dense float64 attention with its T x T matrix."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from baselines.tova import TOVA
from lukv.scoring import PromptLayer


def prompt(tokens, kv_heads=2, query_heads=6, dim=8, softcap=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries, keys, values = (
        2 * torch.randn(h, tokens, dim, generator=generator) for h in (query_heads, kv_heads, kv_heads)
    )
    return queries, PromptLayer(0, 1, keys, values, query_heads, 0.4, softcap)


def dense(queries, layer):
    """[H, T, T]: causal attention probabilities."""
    keys = layer.keys.double().repeat_interleave(layer.query_heads // len(layer.keys), 0)
    logits = queries.double() @ keys.mT * layer.scale
    if layer.softcap:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    future = torch.ones(logits.shape[1:]).triu(1).bool()
    return logits.masked_fill(future, -torch.inf).softmax(-1)


def score(scorer, queries, layer, cuts=()):
    observed = None
    for start, end in pairwise([0, *cuts, queries.shape[1]]):
        observed = scorer.observe(observed, queries[:, start:end], start, None)
    return scorer.score(replace(layer, observed=observed))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("tokens", [1, 2, 70])
def test_tova_is_the_last_row(tokens, softcap):
    queries, layer = prompt(tokens, softcap=softcap)
    expected = dense(queries, layer)[:, -1].mean(0).expand(2, -1)
    torch.testing.assert_close(score(TOVA(), queries, layer).double(), expected, rtol=1e-5, atol=1e-8)
