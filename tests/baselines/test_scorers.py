"""KeyDiff, StreamingLLM, random and oracle scores against their definitions."""

import math
from dataclasses import replace

import pytest
import torch

from baselines.keydiff import KeyDiff
from baselines.oracle import Oracle
from baselines.random import Random
from baselines.streaming import Streaming
from lukv.allocation import Budget, Uniform
from lukv.scoring import PromptLayer
from lukv.selection import Eviction, Protection


def prompt(keys, index=0, layers=2):
    return PromptLayer(index, layers, keys, keys, len(keys), 0.5)


def test_keydiff_by_hand():
    """Two keys east, one north: the anchor is (2/3, 1/3)."""
    keys = torch.tensor([[[3.0, 0.0], [0.5, 0.0], [0.0, 7.0]]])
    east, north = 2 / math.sqrt(5), 1 / math.sqrt(5)
    torch.testing.assert_close(KeyDiff().score(prompt(keys)), torch.tensor([[-east, -east, -north]]))


def test_keydiff_against_plain_loops():
    keys = torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))
    for head, scores in zip(keys.double(), KeyDiff().score(prompt(keys)), strict=True):
        anchor = sum(k / k.norm() for k in head) / len(head)
        expected = torch.stack([-(k @ anchor) / (k.norm() * anchor.norm()) for k in head])
        torch.testing.assert_close(scores.double(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("keys", [torch.zeros(1, 4, 2), torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])])
def test_keydiff_without_a_direction(keys):
    """Zero keys, or keys that cancel: no key is special, none is NaN."""
    scores = KeyDiff().score(prompt(keys))
    assert torch.equal(scores, torch.zeros_like(scores))


def test_keydiff_overflow_of_half_precision():
    """|k| is taken in float32: a float16 key of length 70 000 has no float16 norm."""
    keys = torch.randn(1, 10, 64).sign() * 1e4
    torch.testing.assert_close(
        KeyDiff().score(prompt(keys.half())), KeyDiff().score(prompt(keys)), rtol=1e-6, atol=1e-6
    )


def test_streaming_keeps_sinks_and_the_latest():
    keys = torch.randn(2, 30, 4)
    kept = Eviction(Streaming(), Uniform(), Protection(), Budget(tokens=10)).keep(prompt(keys))
    assert kept.tolist() == [[t < 4 or t >= 24 for t in range(30)]] * 2
    kept = Eviction(Streaming(), Uniform(), Protection(), Budget(tokens=3)).keep(prompt(keys))
    assert kept.tolist() == [[t < 3 for t in range(30)]] * 2


def test_random_is_seeded_by_layer():
    keys = torch.zeros(2, 40, 4)
    one = Random().score(prompt(keys))
    assert torch.equal(one, Random().score(prompt(keys)))
    assert not torch.equal(one, Random().score(prompt(keys, index=1)))
    assert not torch.equal(one, Random(seed=1).score(prompt(keys)))
    assert not torch.equal(one[0], one[1])


def test_random_is_uniform():
    share = sum((Random(seed=s).score(prompt(torch.zeros(4, 500, 1))) < 0.3).float().mean() for s in range(20)) / 20
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 40000)


def test_random_does_not_touch_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    Random().score(prompt(torch.zeros(1, 9, 1)))
    assert torch.equal(torch.rand(3), expected)


def test_oracle_ranks_by_what_it_was_given():
    layer = prompt(torch.zeros(2, 9, 4), index=1)
    utility = torch.rand(2, 9, dtype=torch.float64)
    scores = Oracle().score(replace(layer, observed=utility))
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, utility.float())


def test_nan_in_the_model_is_reported():
    keys = torch.randn(2, 9, 4)
    keys[1, 3, 0] = torch.nan
    with pytest.raises(ValueError, match="scorer keydiff: a score is NaN or infinite"):
        Eviction(KeyDiff(), Uniform(), Protection(), Budget(share=0.5)).keep(replace(prompt(keys)))
