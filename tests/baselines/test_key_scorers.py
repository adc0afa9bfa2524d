"""Scorers of keys and values alone, against their definitions by hand and in plain loops."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from baselines.compactor import Compactor, NonCausalAttention
from baselines.cur import CUR
from baselines.keynorm import KeyNorm
from baselines.lagkv import LagKV
from baselines.leverage import Leverage
from lukv.allocation import Budget, Uniform
from lukv.contract import rope
from lukv.ops import draw_sketch, rotate
from lukv.scoring import PromptLayer
from lukv.selection import Eviction, Protection


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


def test_cur_by_hand():
    """|k|^2 = 1 4 9 16, |v|^2 = 2 2 4 4, inside windows of two tokens or of none."""
    keys = torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    values = torch.tensor([[[1.0, 1.0], [1.0, 1.0], [2.0, 0.0], [0.0, 2.0]]])
    whole = torch.tensor([2.0, 8.0, 36.0, 64.0])
    torch.testing.assert_close(CUR(sketch=0).score(prompt(keys, values))[0], whole / whole.sum())
    parts = torch.tensor([1 / 5 / 2, 4 / 5 / 2, 9 / 25 / 2, 16 / 25 / 2])
    torch.testing.assert_close(CUR(sketch=0, window=2).score(prompt(keys, values))[0], parts / parts.sum())


def test_the_projection_of_cur_is_seeded_by_layer_head_and_seed():
    keys = random_keys(1, 30, 8).expand(2, -1, -1)
    one = CUR().score(prompt(keys))
    assert torch.equal(one, CUR().score(prompt(keys)))
    for other in (CUR(seed=1).score(prompt(keys)), CUR().score(prompt(keys, index=1)), one.flip(0)):
        assert not torch.equal(one, other)


def test_leverage_is_that_of_the_projected_keys_before_rope():
    """The diagonal of the ridge regression's hat matrix, from its T x T form."""
    keys, scorer = random_keys(2, 40, 16), Leverage(sketch=5)
    layer = replace(prompt(keys), rope=rope)
    cos, sin = rope(torch.arange(40))
    turned = replace(layer, keys=rotate(keys, cos, sin))
    phi = draw_sketch(layer, 16, 5, 0).double() / 5**0.5
    x = (keys.double() - keys.double().mean(1, keepdim=True)) @ phi
    kernel = x @ x.mT
    hat = kernel @ (kernel + 0.01 * torch.eye(40)).inverse()
    found = hat.diagonal(dim1=1, dim2=2)
    expected = (found - found.mean()) / found.std()
    torch.testing.assert_close(scorer.score(turned).double(), expected, rtol=1e-4, atol=1e-4)


def test_compactor_ranks_what_stands_between_the_protected_tokens():
    queries, keys = random_keys(4, 60, 16, seed=1), random_keys(2, 60, 16)
    layer = replace(prompt(keys), query_heads=4, observed=(queries,), rope=rope)
    part = replace(layer, keys=keys[:, 8:-4], values=keys[:, 8:-4], positions=torch.arange(8, 56), seen=60)
    halves = Leverage().score(part), NonCausalAttention().score(part)
    torch.testing.assert_close(Compactor(blending=0.5).score(layer)[:, 8:-4], halves[0] / 2 + halves[1])
