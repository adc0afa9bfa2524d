"""Scorers that read the prompt's own attention, against dense float64 attention with its T x T matrix."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from baselines.compactor import NonCausalAttention
from baselines.h2o import BLOCK, H2O
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


OBSERVED = H2O("observed_attention", latest=0.0, average=True)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("tokens", [1, 2, 70, BLOCK + 30])
def test_observed_attention_is_the_mean_of_every_column(tokens, softcap):
    queries, layer = prompt(tokens, softcap=softcap)
    expected = dense(queries, layer).sum(1) / torch.arange(tokens, 0, -1)
    found = score(OBSERVED, queries, layer, cuts=(1,) if tokens > 1 else ())
    torch.testing.assert_close(found.double(), expected.unflatten(0, (2, -1)).mean(1), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kept", [1, 2, 9, 30])
def test_h2o_keeps_half_heavy_hitters_and_half_the_latest(kept):
    queries, layer = prompt(31)
    heavy = dense(queries, layer).sum(1).unflatten(0, (2, -1)).mean(1)
    for scores, mass in zip(score(H2O(), queries, layer), heavy, strict=True):
        latest = {*range(31 - kept // 2, 31)}
        others = sorted({*range(31)} - latest, key=lambda t: mass[t], reverse=True)[: kept - kept // 2]
        assert set(scores.topk(kept).indices.tolist()) == latest | set(others)


def test_after_a_later_eviction_only_whole_rows_count():
    """Tokens 0, 2, 5, 6, 7 of 8 are left: the queries of 5, 6 and 7 see all that is left of what they saw."""
    queries, layer = prompt(8, kv_heads=1, query_heads=2)
    left = torch.tensor([0, 2, 5, 6, 7])
    less = replace(layer, keys=layer.keys[:, left], values=layer.values[:, left], positions=left, seen=8, head=0)
    expected = dense(queries[:, left], less)[:, 2:].sum(1).mean(0)
    found = score(H2O(latest=0.0), queries, less)
    torch.testing.assert_close(found[0].double(), expected, rtol=1e-5, atol=1e-8)


def test_non_causal_attention_against_plain_loops():
    """Chunks of 16; the last is filled up with zeros, which count as keys of logit 0 and as rows without a choice."""
    queries, layer = prompt(41)
    collected = torch.zeros(6, 41, dtype=torch.float64)
    for h in range(6):
        for start in range(0, 41, 16):
            part = slice(start, min(start + 16, 41))
            missing = 16 - (part.stop - start)
            logits = queries[h, part].double() @ layer.keys[h // 3, part].double().T
            weights = torch.cat([logits, torch.zeros(len(logits), missing)], -1).softmax(-1)[:, : len(logits)]
            collected[h, part] = weights.sum(0) + missing / 16
    weighed = collected.unflatten(0, (2, 3)).mean(1) * layer.values.double().norm(dim=-1)
    smooth = torch.stack([weighed.roll(1, -1), weighed, weighed.roll(-1, -1)])
    smooth[0, :, 0] = smooth[2, :, -1] = 0
    mean = smooth.mean(0)
    found = score(NonCausalAttention(chunk=16), queries, layer, cuts=(7, 30))
    torch.testing.assert_close(found.double(), (mean - mean.mean()) / mean.std(), rtol=1e-4, atol=1e-5)
