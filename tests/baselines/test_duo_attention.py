"""DuoAttention on the fly: the heads' kinds against plain loops, and how the budget is met."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from baselines.duo_attention import DuoAttention
from baselines.global_topk import GlobalTopK
from lukv.allocation import Budget
from lukv.contract import rope
from lukv.scoring import PromptLayer
from lukv.selection import Eviction, Protection

HEADS, GROUP, D = 3, 2, 8


def turn(x, at):
    cos, sin = (part[0] for part in rope(torch.tensor([at]), D))
    half = torch.cat([-x[D // 2 :], x[: D // 2]])
    return x * cos + half * sin


def prompt(tokens, seed=0):
    """Queries and keys after RoPE, and both before it; each head has a direction of its own, so that kinds differ."""
    generator = torch.Generator().manual_seed(seed)
    plain_q, plain_k = (
        torch.randn(n, tokens, D, generator=generator) + 3 * torch.randn(n, 1, D, generator=generator)
        for n in (HEADS * GROUP, HEADS)
    )
    turned = [
        torch.stack([torch.stack([turn(v, t) for t, v in enumerate(head)]) for head in x]) for x in (plain_q, plain_k)
    ]
    return *turned, plain_q, plain_k


@pytest.mark.parametrize("tokens", [1, 9])
def test_r_is_the_area_under_the_attention_of_the_mean_query_to_the_mean_key(tokens):
    queries, keys, plain_q, plain_k = prompt(tokens)
    scorer = DuoAttention(span=20)
    observed = scorer.observe(None, queries[:, :1], 0, lambda at: rope(at, D))
    if tokens > 1:
        observed = scorer.observe(observed, queries[:, 1:], 1, lambda at: rope(at, D))
    layer = PromptLayer(0, 1, keys, keys, HEADS * GROUP, 0.3, observed=observed, rope=lambda at: rope(at, D))
    scores = scorer.score(layer)
    for head in range(HEADS):
        areas = []
        for q in plain_q[head * GROUP : (head + 1) * GROUP]:
            logits = [float(turn(q.mean(0), 19) @ turn(plain_k[head].mean(0), j)) * 0.3 for j in range(20)]
            weights = [math.exp(x) for x in logits]
            areas.append(sum(sum(weights[: j + 1]) for j in range(20)) / sum(weights) / 20)
        assert scores[head].tolist() == pytest.approx([sum(areas) / GROUP] * tokens, rel=1e-4)


def layers_of(kinds, tokens):
    """One layer a row of `kinds`; a head of kind x looks back evenly (r = 0.5) the more, the smaller x is."""
    layers = []
    for index, row in enumerate(kinds):
        keys = torch.zeros(len(row), tokens, D)
        keys[..., 0] = 1
        queries = torch.zeros(len(row), tokens, D)
        queries[..., 0] = torch.tensor(row)[:, None]
        layer = PromptLayer(index, len(kinds), keys, keys, len(row), 1.0, rope=lambda at: rope(at, D))
        turned = [torch.stack([torch.stack([turn(v, t) for t, v in enumerate(h)]) for h in x]) for x in (queries, keys)]
        seen = DuoAttention().observe(None, turned[0], 0, lambda at: rope(at, D))
        layers.append(replace(layer, keys=turned[1], values=turned[1], observed=seen))
    return layers


def test_the_budget_pays_for_whole_heads_and_the_rest_keep_sinks_and_latest_tokens():
    """Six heads of 20 tokens; streaming ones keep 2 + 3. 62 entries: 30 for all, 15 each for two, 2 for a third."""
    kinds = [[3.0, 0.0, 5.0], [4.0, 1.0, 2.0]]
    scorer = DuoAttention(sink=2, recent=3, span=40)
    eviction = Eviction(scorer, GlobalTopK(), Protection(), Budget(share=62 / 120))
    kept = eviction.select([eviction.rank(layer) for layer in layers_of(kinds, 20)])
    counts = [mask.sum(-1).tolist() for mask in kept]
    assert counts == [[5, 20, 5], [5, 20, 7]]
    assert kept[0][0].nonzero().flatten().tolist() == [0, 1, 17, 18, 19]
    assert kept[1][2].nonzero().flatten().tolist() == [0, 1, 15, 16, 17, 18, 19]


def test_a_budget_below_the_protected_tokens_has_streaming_heads_only():
    scorer = DuoAttention(sink=2, recent=3, span=40)
    eviction = Eviction(scorer, GlobalTopK(), Protection(), Budget(tokens=4))
    kept = eviction.select([eviction.rank(layer) for layer in layers_of([[1.0, 2.0]], 20)])
    assert [head.nonzero().flatten().tolist() for head in kept[0]] == [[0, 1, 18, 19]] * 2


def test_impossible_settings():
    with pytest.raises(ValueError, match="span=0 must be at least 1"):
        DuoAttention(span=0)
