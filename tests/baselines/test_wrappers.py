"""Scorers around another scorer, by hand and against plain loops."""

from dataclasses import dataclass, replace

import pytest
import torch

from baselines.adakv import AdaKV
from baselines.chunkkv import ChunkKV
from baselines.criticalkv import CriticalKV, weigh_values
from baselines.keydiff import KeyDiff
from baselines.snapkv import SnapKV
from lukv.allocation import Budget, Uniform
from lukv.scoring import PromptLayer, Scorer
from lukv.selection import Eviction, Protection


@dataclass(frozen=True)
class Given(Scorer):
    """Scores from outside: the first dimension of the values."""

    name: str = "given"

    def score(self, layer):
        return layer.values[..., 0].float()


def prompt(scores, width=2):
    scores = torch.tensor(scores)
    values = torch.cat([scores[..., None], torch.ones(*scores.shape, width - 1)], -1)
    return PromptLayer(0, 1, torch.ones_like(values), values, len(scores), 0.5)


def test_chunkkv_by_hand():
    """Two heads' sums are 3 1 | 5 7 | 2: chunks of 2 have 2, 6 and, alone, 2."""
    layer = prompt([[1.0, 0.0, 2.0, 3.0, 1.0], [2.0, 1.0, 3.0, 4.0, 1.0]])
    scores = ChunkKV(inner=Given(), chunk=2).score(layer)
    assert scores.tolist() == [[2.0, 2.0, 6.0, 6.0, 2.0]] * 2


def test_chunkkv_keeps_whole_chunks_and_cuts_the_last():
    layer = prompt([[1.0, 1.0, 5.0, 5.0, 3.0, 3.0]])
    for kept, expected in [(2, [2, 3]), (3, [2, 3, 5]), (4, [2, 3, 4, 5])]:
        mask = Eviction(ChunkKV(inner=Given(), chunk=2), Uniform(), Protection(), Budget(tokens=kept)).keep(layer)
        assert mask[0].nonzero().flatten().tolist() == expected


def test_what_the_inner_scorer_protects_stands_outside_of_chunks_or_lifts_them():
    """Tokens 0 and 5 of 6 are protected; their scores, 100, are no part of a mean, or make it that of max + 1."""
    layer = prompt([[100.0, 1.0, 2.0, 2.0, 4.0, 100.0]])
    inner = Given(sink=1, recent=1)
    outside = ChunkKV(inner=inner, chunk=2)
    assert (outside.sink, outside.recent) == (1, 1)
    assert outside.score(layer).tolist() == [[1.0, 1.0, 2.0, 2.0, 4.0, 4.0]]
    lifted = ChunkKV(inner=inner, chunk=2, lift=True)
    assert (lifted.sink, lifted.recent) == (0, 0)
    assert lifted.score(layer).tolist() == [[51.0, 51.0, 2.0, 2.0, 52.5, 52.5]]


def test_a_wrapper_shows_its_inner_scorer_the_queries():
    inner = SnapKV(window=4, kernel=3)
    queries, keys = torch.randn(2, 30, 8), torch.randn(1, 30, 8)
    layer = PromptLayer(0, 1, keys, keys, 2, 0.5)
    wrapper = ChunkKV(inner=inner, chunk=1)
    scores = []
    for scorer in (inner, wrapper):
        observed = scorer.observe(scorer.observe(None, queries[:, :20], 0, None), queries[:, 20:], 20, None)
        scores.append(scorer.score(replace(layer, observed=observed)))
    assert torch.equal(*scores)


def test_parameters_tell_what_is_inside():
    """A budget table of one is no table of the other."""
    around = [ChunkKV(inner=inner).parameters() for inner in (KeyDiff(), SnapKV(), SnapKV(window=8))]
    assert around[0]["inner"]["name"] == "keydiff"
    assert around[1] != around[2]


@pytest.mark.parametrize("chunk", [0, -1])
def test_chunks_have_tokens(chunk):
    with pytest.raises(ValueError, match=r"chunk=.* must be at least 1"):
        ChunkKV(inner=KeyDiff(), chunk=chunk)


def test_values_are_weighed_by_the_output_projection():
    """|W_O^h v|_1 of each query head by itself, then the mean over its group; a later eviction shows one KV head."""
    generator = torch.Generator().manual_seed(0)
    values, output = torch.randn(2, 700, 3, generator=generator), torch.randn(5, 6 * 3, generator=generator)
    layer = PromptLayer(0, 1, values, values, 6, 0.5, output=output)
    expected = torch.zeros(2, 700)
    for h in range(6):
        expected[h // 3] += torch.stack([(output[:, 3 * h : 3 * h + 3] @ v).abs().sum() for v in values[h // 3]]) / 3
    torch.testing.assert_close(weigh_values(layer), expected, rtol=1e-5, atol=1e-6)
    one = replace(layer, keys=values[1:], values=values[1:], query_heads=3, head=1)
    torch.testing.assert_close(weigh_values(one), expected[1:], rtol=1e-5, atol=1e-6)


def critical(scores, lengths):
    """A prompt of one head whose values have these lengths behind W_O, and scores from outside."""
    values = torch.stack([torch.tensor(scores), torch.tensor(lengths)], -1)[None]
    output = torch.tensor([[0.0, 1.0]])
    return PromptLayer(0, 1, torch.ones_like(values), values, 1, 0.5, output=output)


@pytest.mark.parametrize(("kept", "expected"), [(1, [4]), (2, [0, 4]), (3, [0, 3, 4]), (4, [0, 1, 3, 4])])
def test_criticalkv_by_hand(kept, expected):
    """By score 0 1 2 3 4, by score times length 4 3 0 1 2: of 4 tokens two are 0 and 1, and the others 4 and 3."""
    layer = critical([5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 10.0, 50.0])
    mask = Eviction(CriticalKV(inner=Given()), Uniform(), Protection(), Budget(tokens=kept)).keep(layer)
    assert mask[0].nonzero().flatten().tolist() == expected


def test_critical_adakv_shares_by_the_inner_scores():
    """The heads' budgets are AdaKV's over the inner scorer, whatever the values weigh."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 90, 4, generator=generator)
    layer = PromptLayer(0, 1, values, values, 6, 0.5, output=torch.randn(5, 24, generator=generator))
    masks = [
        Eviction(scorer, AdaKV(), Protection(), Budget(share=0.3)).keep(layer)
        for scorer in (Given(), CriticalKV(inner=Given()))
    ]
    assert masks[0].sum(-1).tolist() == masks[1].sum(-1).tolist()
    assert not torch.equal(*masks)


def test_a_layer_without_an_output_projection_is_refused():
    layer = replace(critical([1.0, 2.0], [1.0, 1.0]), output=None)
    with pytest.raises(ValueError, match="layer 0 shows no output projection"):
        CriticalKV(inner=Given()).score(layer)
