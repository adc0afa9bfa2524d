"""Scorers of keys and values alone, against their definitions by hand and in plain loops."""

from itertools import pairwise

import pytest
import torch

from baselines.keynorm import KeyNorm
from baselines.lagkv import LagKV
from lukv.allocation import Budget, Uniform
from lukv.eviction import Eviction, Protection
from lukv.scoring import PromptLayer


def prompt(keys, values=None, index=0):
    return PromptLayer(index, 2, keys, keys if values is None else values, len(keys), 0.5)


def random_keys(heads, tokens, dim, seed=0):
    return torch.randn(heads, tokens, dim, generator=torch.Generator().manual_seed(seed))


def test_keynorm_by_hand():
    keys = torch.tensor([[[3.0, 4.0], [0.0, 1.0], [6.0, 8.0]]])
    assert KeyNorm().score(prompt(keys)).tolist() == [[-5.0, -1.0, -10.0]]


def test_keynorm_of_half_precision():
    """A float16 key of length 80 000 has no float16 norm."""
    keys = random_keys(1, 10, 64).sign() * 1e4
    assert torch.equal(KeyNorm().score(prompt(keys.half())), KeyNorm().score(prompt(keys)))


def lag_scores(states, sink, lag):
    """[partitions but the last, lag] of one head's keys or values [T, d], one number at a time."""
    parts = [states[start : start + lag] for start in range(sink, len(states) - lag + 1, lag)]
    rows = []
    for part, following in pairwise(parts):
        low, high = following.amin(0), following.amax(0)
        spread = torch.stack([((token - low) / (high - low)).std() for token in part])
        rows.append((spread.exp() / spread.exp().sum()).tolist())
    return torch.tensor(rows)


@pytest.mark.parametrize("tokens", [18, 24, 39])
def test_lagkv_against_plain_loops(tokens):
    """Sinks and the last partition with the rest behind it score 1; the others by the partition that follows."""
    keys, values = random_keys(2, tokens, 6), random_keys(2, tokens, 6, seed=1)
    scorer = LagKV(sink=2, lag=8, cross=True)
    scored = ((tokens - 2) // 8 - 1) * 8
    for k, v, found in zip(keys, values, scorer.score(prompt(keys, values)), strict=True):
        mean = (lag_scores(k, 2, 8) + lag_scores(v, 2, 8)) / 2
        expected = torch.cat([torch.ones(2), mean.flatten(), torch.ones(tokens - 2 - scored)])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    ranks = LagKV(sink=2, lag=8).score(prompt(keys, values))[:, 2 : 2 + scored].unflatten(1, (-1, 8))
    assert torch.equal(ranks.sort(-1).values, (torch.arange(8) / 8).expand_as(ranks))
    assert torch.equal(
        ranks.argsort(-1), scorer.score(prompt(keys, values))[:, 2 : 2 + scored].view_as(ranks).argsort(-1)
    )


def test_lagkv_keeps_the_same_of_every_partition():
    keys = random_keys(1, 2 + 5 * 8 + 3, 6)
    kept = Eviction(LagKV(sink=2, lag=8), Uniform(), Protection(), Budget(tokens=2 + 11 + 4 * 3)).keep(prompt(keys))
    assert kept[0].tolist()[:2] == [True] * 2
    assert kept[0].tolist()[-11:] == [True] * 11
    assert kept[0, 2:34].view(4, 8).sum(-1).tolist() == [3] * 4


def test_lagkv_of_a_short_prompt_is_the_latest_tokens():
    kept = Eviction(LagKV(sink=2, lag=8), Uniform(), Protection(), Budget(tokens=5)).keep(prompt(random_keys(1, 17, 4)))
    assert kept[0].nonzero().flatten().tolist() == [0, 1, 14, 15, 16]


def test_lagkv_where_the_next_partition_does_not_vary():
    keys = random_keys(1, 18, 4)
    keys[:, 10:, 0] = 1.0
    assert torch.isfinite(LagKV(sink=2, lag=8).score(prompt(keys))).all()
