"""SnapKV against a dense float64 softmax with plain Python pooling, in all its variants."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from baselines.snapkv import SnapKV
from lukv.allocation import Budget, Uniform
from lukv.scoring import PromptLayer
from lukv.selection import Eviction, Protection

VARIANTS = [(32, 7, "max", "pool_then_group"), (64, 5, "avg", "pool_then_group"), (32, 7, "max", "group_then_pool")]


def prompt(tokens, kv_heads=2, query_heads=6, dim=8, dtype=torch.float32, softcap=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    queries, keys, values = (
        2 * torch.randn(h, tokens, dim, generator=generator).to(dtype) for h in (query_heads, kv_heads, kv_heads)
    )
    return queries, PromptLayer(0, 1, keys, values, query_heads, 0.4, softcap)


def dense(queries, layer, window, kernel, pool, order):
    """[K, T - W]: one token and one head at a time."""
    keys, tokens = layer.keys.double(), layer.keys.shape[1]
    group = layer.query_heads // len(keys)
    window = min(window, tokens)
    mass = torch.zeros(layer.query_heads, tokens - window, dtype=torch.float64)
    for h in range(layer.query_heads):
        for t in range(tokens - window, tokens):
            logits = keys[h // group, : t + 1] @ queries[h, t].double() * layer.scale
            if layer.softcap:
                logits = layer.softcap * torch.tanh(logits / layer.softcap)
            mass[h] += logits.softmax(-1)[: tokens - window] / window

    def pooled(row):
        half, out = kernel // 2, []
        for t in range(len(row)):
            near = row[max(t - half, 0) : t + half + 1]
            out.append(max(near) if pool == "max" else math.fsum(near) / kernel)
        return torch.tensor(out, dtype=torch.float64)

    if order == "group_then_pool":
        return torch.stack([pooled(row.tolist()) for row in mass.unflatten(0, (-1, group)).mean(1)])
    return torch.stack([pooled(row.tolist()) for row in mass]).unflatten(0, (-1, group)).mean(1)


def score(scorer, queries, layer, cuts=()):
    observed = None
    edges = [0, *cuts, queries.shape[1]]
    for start, end in pairwise(edges):
        observed = scorer.observe(observed, queries[:, start:end], start, None)
    return scorer.score(replace(layer, observed=observed))


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("tokens", [33, 70, 100])
@pytest.mark.parametrize("variant", VARIANTS)
def test_against_dense(variant, tokens, softcap):
    queries, layer = prompt(tokens, softcap=softcap)
    scorer = SnapKV("s", 0, 0, *variant)
    expected = dense(queries, layer, *variant)
    got = score(scorer, queries, layer)
    assert got.shape == (2, tokens)
    torch.testing.assert_close(got[:, : expected.shape[1]].double(), expected, rtol=2e-6, atol=1e-9)


def test_orders_differ():
    queries, layer = prompt(100)
    assert not torch.allclose(score(SnapKV(), queries, layer), score(SnapKV(order="group_then_pool"), queries, layer))


def test_orders_agree_without_groups():
    """With G = 1 all variants of the order are one, and equal to the original's query heads."""
    queries, layer = prompt(100, kv_heads=3, query_heads=3)
    assert torch.equal(score(SnapKV(), queries, layer), score(SnapKV(order="group_then_pool"), queries, layer))


@pytest.mark.parametrize("cuts", [(1,), (10, 20, 99), tuple(range(1, 100)), (60,), (90,)])
def test_pieces_do_not_matter(cuts):
    queries, layer = prompt(100)
    assert torch.equal(score(SnapKV(), queries, layer, cuts), score(SnapKV(), queries, layer))


def test_memory_of_the_window_only():
    queries, _ = prompt(1000)
    observed = SnapKV().observe(None, queries, 0, None)
    assert observed.shape == (6, 32, 8)
    assert observed.untyped_storage().nbytes() == observed.numel() * 4


@pytest.mark.parametrize("tokens", [1, 2, 31, 32])
def test_prompt_inside_the_window(tokens):
    """Nothing lies before the window: all scores are equal, and a small budget keeps the latest tokens."""
    queries, layer = prompt(tokens)
    assert torch.equal(score(SnapKV(), queries, layer), torch.zeros(2, tokens))
    observed = SnapKV().observe(None, queries, 0, None)
    kept = Eviction(SnapKV(), Uniform(), Protection(), Budget(tokens=5)).keep(replace(layer, observed=observed))
    assert kept.tolist() == [[t >= tokens - 5 for t in range(tokens)]] * 2


def test_window_is_kept_and_counted():
    queries, layer = prompt(100)
    observed = SnapKV().observe(None, queries, 0, None)
    kept = Eviction(SnapKV(), Uniform(), Protection(), Budget(share=0.4)).keep(replace(layer, observed=observed))
    assert kept[:, 68:].all()
    assert kept.sum(-1).tolist() == [40, 40]


def test_half_precision_is_computed_in_float32():
    queries, layer = prompt(100, dtype=torch.bfloat16)
    expected = dense(queries, layer, *VARIANTS[0])
    torch.testing.assert_close(score(SnapKV(), queries, layer)[:, :68].double(), expected, rtol=2e-6, atol=1e-9)


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"kernel": 4}, {"kernel": 0}, {"pool": "mean"}, {"order": "group_first"}]
)
def test_wrong_parameters(wrong):
    with pytest.raises(ValueError, match="snapkv: "):
        SnapKV(**wrong)


def test_recent_is_the_window_at_least():
    assert SnapKV(window=16).recent == 16
    assert SnapKV(window=16, recent=20).recent == 20


def test_a_window_that_an_eviction_has_broken():
    """Only window queries whose own and later tokens are all still cached are used: here the last five of eight."""
    queries, layer = prompt(40)
    observed = SnapKV(window=8).observe(None, queries, 0, None)
    left = torch.tensor([0, 2, 3, 11, 12, 25, 33, *range(35, 40)])
    keys, values = layer.keys[:, left], layer.values[:, left]
    part = replace(layer, keys=keys, values=values, observed=observed, positions=left, seen=40)
    wanted = dense(queries[:, left], replace(layer, keys=keys), 5, 7, "max", "pool_then_group")
    torch.testing.assert_close(SnapKV(window=8).score(part)[:, :7].double(), wanted, rtol=1e-5, atol=1e-9)
    assert not SnapKV(window=8).score(part)[:, 7:].any()
    nothing = replace(part, keys=keys[:, :7], values=values[:, :7], positions=left[:7])
    assert not SnapKV(window=8).score(nothing).any()
