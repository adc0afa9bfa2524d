"""Expected Attention against dense float64 matrices, and its formula against a simulation."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from baselines.expected_attention import ExpectedAttention
from lukv.allocation import Budget, Uniform
from lukv.backend.cache import RaggedCache
from lukv.budgets.table import BudgetTable
from lukv.scoring import PromptLayer
from lukv.selection import Eviction, Protection
from tests.as_typed import ROOT
from tests.reference.dense_reference import rows, tiny_model

THETA = 100.0


def rotary(dims, factor=1.0):
    """(rope for positions, the d x d matrix of one position) of a plain rotary embedding with an attention factor."""
    speed = THETA ** (-torch.arange(0, dims, 2).double() / dims)

    def rope(positions):
        angle = positions[:, None].double() * speed
        return torch.cat([angle.cos()] * 2, -1).float() * factor, torch.cat([angle.sin()] * 2, -1).float() * factor

    def matrix(position, dim):
        out = torch.eye(dim, dtype=torch.float64)
        for i in range(dims // 2):
            angle = position * speed[i]
            j = i + dims // 2
            out[i, i] = out[j, j] = angle.cos() * factor
            out[i, j], out[j, i] = -angle.sin() * factor, angle.sin() * factor
        return out

    return rope, matrix


def prompt(tokens, dims=8, dim=8, factor=1.0, kv_heads=2, query_heads=4, seed=0):
    """Pre-RoPE queries with a mean, and the layer that holds the rotated ones."""
    generator = torch.Generator().manual_seed(seed)
    before = torch.randn(query_heads, tokens, dim, generator=generator) + torch.randn(
        query_heads, 1, dim, generator=generator
    )
    keys, values = (torch.randn(kv_heads, tokens, dim, generator=generator) for _ in range(2))
    rope, matrix = rotary(dims, factor)
    after = torch.stack([before[:, t].double() @ matrix(t, dim).T for t in range(tokens)], 1).float()
    return before, after, PromptLayer(0, 1, keys, values, query_heads, 0.3, rope=rope), matrix


def observe(scorer, queries, layer, cuts=()):
    observed, edges = None, [0, *cuts, queries.shape[1]]
    for start, end in pairwise(edges):
        observed = scorer.observe(observed, queries[:, start:end], start, layer.rope)
    return replace(layer, observed=observed)


def dense(before, layer, matrix, future, eps, sink=4, sinks_in_softmax=False):
    """Straight from the definition, in float64, with full rotation matrices."""
    heads, tokens, dim = layer.keys.shape
    group = layer.query_heads // heads
    R = sum(matrix(p, dim) for p in range(tokens, tokens + future)) / future
    scores = torch.zeros(heads, tokens - sink, dtype=torch.float64)
    for h in range(layer.query_heads):
        q, k = before[h, sink:].double(), layer.keys[h // group, 0 if sinks_in_softmax else sink :].double()
        mu, S = R @ q.mean(0), R @ torch.cov(q.T, correction=0) @ R.T
        logits = torch.stack([layer.scale * (mu @ x) + layer.scale**2 / 2 * (x @ S @ x) for x in k])
        scores[h // group] += logits.softmax(-1)[sink - tokens :] / group
    return (scores + eps) * layer.values[:, sink:].double().norm(dim=-1)


@pytest.mark.parametrize(
    ("dims", "dim", "factor"), [(8, 8, 1.0), (4, 8, 1.0), (8, 8, 1.7)], ids=["plain", "partial", "attention factor"]
)
@pytest.mark.parametrize("sinks", [False, True], ids=["sinks out", "sinks in"])
@pytest.mark.parametrize("eps", [0.0, 0.02])
def test_against_dense(dims, dim, factor, eps, sinks):
    before, after, layer, matrix = prompt(40, dims, dim, factor)
    scorer = ExpectedAttention(future=16, eps=eps, sinks_in_softmax=sinks)
    scores = scorer.score(observe(scorer, after, layer))
    expected = dense(before, layer, matrix, 16, eps, sinks_in_softmax=sinks)
    torch.testing.assert_close(scores[:, 4:].double(), expected, rtol=1e-5, atol=1e-9)
    assert not scores[:, :4].any()


def test_queries_of_16_bits_in_blocks_and_pieces(monkeypatch):
    """Their products are float32. What is compared with is made of the very same rounded queries."""
    _, after, layer, matrix = prompt(150, dims=96, dim=96, kv_heads=1, query_heads=3)
    after, scorer = after.bfloat16(), ExpectedAttention(future=16)
    undone = torch.stack([after[:, t].double() @ matrix(t, 96) for t in range(150)], 1)
    monkeypatch.setattr("baselines.expected_attention.BLOCK", 32)
    for cuts in ((), (3, 40, 41)):
        scores = scorer.score(observe(scorer, after, layer, cuts))[:, 4:]
        torch.testing.assert_close(scores.double(), dense(undone, layer, matrix, 16, 0.02), rtol=1e-5, atol=0)


def test_tables_made_before_sinks_could_be_in_the_softmax_stay_valid():
    """A table's metadata holds the parameters, and is compared with the run's."""
    before = {"name": "expected_attention", "sink": 4, "recent": 0, "future": 512, "eps": 0.02}
    assert ExpectedAttention().parameters() == before
    assert ExpectedAttention(sinks_in_softmax=True).parameters() == {**before, "sinks_in_softmax": True}
    table = BudgetTable.load(ROOT / "models" / "tiny" / "tables" / "expected_attention.safetensors")
    assert table.metadata["scorer_parameters"] == before


def test_what_an_eviction_left_is_judged_where_it_stood():
    """The expectation is over the positions after all tokens seen, whatever is left. So scores agree up to the
    softmax's sum. Some sinks may be evicted, too."""
    _, after, layer, _ = prompt(40, query_heads=2)
    scorer = ExpectedAttention(future=16, eps=0.0)
    whole = observe(scorer, after, layer)
    left = torch.tensor([1, 3, 4, 9, 10, 17, 30, 31, 38])
    part = replace(whole, keys=layer.keys[:, left], values=layer.values[:, left], positions=left, seen=40)
    scores, expected = scorer.score(part), scorer.score(whole)[:, left]
    assert not scores[:, :2].any()
    ratio = scores[:, 2:] / expected[:, 2:]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4, atol=0)


def test_formula_against_simulation():
    """E[exp(scale q.k)] of Gaussian queries at random future positions of a *fixed* rotation is what the logit says."""
    before, after, layer, matrix = prompt(60)
    scorer = ExpectedAttention(future=1, eps=0.0)
    scores = scorer.score(observe(scorer, after, layer))[:, 4:]
    q = before[:, 4:].double()
    draws = torch.randn(200_000, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for k in range(2):
        shares = []
        for h in (2 * k, 2 * k + 1):
            root = torch.linalg.cholesky(torch.cov(q[h].T, correction=0))
            future = (q[h].mean(0) + draws @ root.T) @ matrix(60, 8).T
            weight = (layer.scale * future @ layer.keys[k, 4:].double().T).exp().mean(0)
            shares.append(weight / weight.sum())
        expected = (shares[0] + shares[1]) / 2 * layer.values[k, 4:].double().norm(dim=-1)
        torch.testing.assert_close(scores[k].double(), expected, rtol=0.05, atol=0)


@pytest.mark.parametrize("cuts", [(1,), (4,), (3, 5), tuple(range(1, 40)), (20,)])
def test_pieces_do_not_matter(cuts):
    _, after, layer, _ = prompt(40)
    scorer = ExpectedAttention(eps=0.0)
    whole, pieces = observe(scorer, after, layer), observe(scorer, after, layer, cuts)
    assert whole.observed.n == pieces.observed.n == 36
    torch.testing.assert_close(pieces.observed.outer, whole.observed.outer, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scorer.score(pieces), scorer.score(whole), rtol=1e-6, atol=1e-9)


def test_long_pieces_are_taken_in_blocks(monkeypatch):
    _, after, layer, _ = prompt(40)
    scorer = ExpectedAttention()
    whole = scorer.score(observe(scorer, after, layer))
    monkeypatch.setattr("baselines.expected_attention.BLOCK", 7)
    torch.testing.assert_close(scorer.score(observe(scorer, after, layer)), whole, rtol=1e-6, atol=1e-9)


def test_sinks_do_not_count():
    """Whatever the first four queries are, the moments are those of the others; the sinks are protected."""
    _, after, layer, _ = prompt(40)
    scorer = ExpectedAttention()
    other = after.clone()
    other[:, :4] *= 1000
    assert torch.equal(scorer.score(observe(scorer, other, layer)), scorer.score(observe(scorer, after, layer)))
    assert scorer.sink == 4


@pytest.mark.parametrize("tokens", [1, 4])
def test_prompt_of_sinks_only(tokens):
    _, after, layer, _ = prompt(tokens)
    scorer = ExpectedAttention()
    layer = observe(scorer, after, layer)
    assert layer.observed is None
    assert torch.equal(scorer.score(layer), torch.zeros(2, tokens))


def test_one_token_after_the_sinks():
    _, after, layer, _ = prompt(5)
    scorer = ExpectedAttention()
    scores = scorer.score(observe(scorer, after, layer))
    torch.testing.assert_close(scores[:, 4], 1.02 * layer.values[:, 4].norm(dim=-1))


def test_without_rotary_embedding():
    _, after, layer, _ = prompt(40)
    scorer = ExpectedAttention(future=3, eps=0.0)
    layer = replace(layer, rope=None)
    identity = lambda position, dim: torch.eye(dim, dtype=torch.float64)  # noqa: E731
    expected = dense(after, layer, identity, 3, 0.0)
    torch.testing.assert_close(
        scorer.score(observe(scorer, after, layer))[:, 4:].double(), expected, rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("wrong", [{"future": 0}, {"eps": -1.0}])
def test_wrong_parameters(wrong):
    with pytest.raises(ValueError, match="expected_attention: "):
        ExpectedAttention(**wrong)


def test_beam_search_is_refused_as_under_any_scorer():
    model = tiny_model("llama", layers=2)
    for tokens in (3, 30):
        cache = RaggedCache(model, Eviction(ExpectedAttention(), Uniform(), Protection(0, 0), Budget(0.5)))
        prompt = torch.tensor(rows([tokens]))
        with pytest.raises(NotImplementedError, match="beam search is not supported"):
            model.generate(prompt, past_key_values=cache, num_beams=2, max_new_tokens=4, do_sample=False)
