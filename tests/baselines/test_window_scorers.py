"""CAKE's and DefensiveKV's scores against plain loops over dense float64 attention."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from baselines.cake import CAKE
from baselines.criticalkv import weigh_values
from baselines.defensivekv import DefensiveKV, hold_mass
from tests.baselines.test_attention_scorers import dense, prompt, score

TOKENS, WINDOW = 40, 6
BEFORE = TOKENS - WINDOW


def pool(row, kernel=5):
    """The mean over `kernel` neighbours, zeros at the edges counted."""
    padded = [0.0] * (kernel // 2) + list(row) + [0.0] * (kernel // 2)
    return [sum(padded[i : i + kernel]) / kernel for i in range(len(row))]


def with_output(softcap=None, seed=0):
    queries, layer = prompt(TOKENS, softcap=softcap, seed=seed)
    output = torch.randn(20, 6 * 8, generator=torch.Generator().manual_seed(3))
    return queries, replace(layer, output=output)


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_cake_is_mean_and_variance_of_the_windows_rows(softcap):
    queries, layer = with_output(softcap)
    rows = dense(queries, layer)[:, -WINDOW:, :BEFORE]
    found = score(CAKE(window=WINDOW), queries, layer, cuts=(3, 35))
    for head in range(2):
        pooled = []
        for h in range(3 * head, 3 * head + 3):
            mean = [float(rows[h, :, j].sum()) / WINDOW for j in range(BEFORE)]
            spread = [sum((float(p) - mean[j]) ** 2 for p in rows[h, :, j]) / (WINDOW - 1) for j in range(BEFORE)]
            pooled.append(pool([m + 200 * v for m, v in zip(mean, spread, strict=True)]))
        expected = [sum(column) / 3 for column in zip(*pooled, strict=True)]
        assert found[head, :BEFORE].tolist() == pytest.approx(expected, rel=1e-3)
    assert (found[:, BEFORE:] == 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_defensivekv_is_its_formula(seed):
    queries, layer = with_output(seed=seed)
    rows = dense(queries, layer)[:, -WINDOW:, :BEFORE]
    weight = weigh_values(layer).double()
    scorer = DefensiveKV(window=WINDOW)
    found = score(scorer, queries, layer)
    near = float(rows[:, :, -WINDOW:].sum(-1).mean())
    risks, leading = [], []
    for head in range(2):
        worst = [0.0] * BEFORE
        for h in range(3 * head, 3 * head + 3):
            for row in rows[h].tolist():
                pooled = pool(row)
                scaled = [p / sum(pooled) * sum(row) for p in pooled]
                worst = [max(pair) for pair in zip(worst, scaled, strict=True)]
        floor = sum(worst) / BEFORE
        share = weight[head] / weight.sum(0)
        risks.append([max(r, floor) * float(share[j]) for j, r in enumerate(worst)])
        mean = rows[3 * head : 3 * head + 3].mean((0, 1))
        held, first = 0.0, []
        for j in mean.argsort(descending=True).tolist():
            held += float(mean[j] / mean.sum())
            if held >= 0.9 - near:
                break
            first.append(j)
        leading.append((first, mean))
    for head, (first, mean) in enumerate(leading):
        ranked = found[head, :BEFORE].argsort(descending=True).tolist()
        assert ranked[: len(first)] == first
        assert 0 < len(first) < BEFORE
        for j in set(range(BEFORE)) - set(first):
            assert float(found[head, j]) == pytest.approx(risks[head][j], rel=1e-3)
        assert float(found[head, first[0]]) == pytest.approx(max(map(max, risks)) + float(mean[first[0]]), rel=1e-3)


def test_the_first_stage_ends_before_the_token_that_completes_it():
    share = torch.tensor([[0.1, 0.6, 0.3], [0.5, 0.25, 0.25]])
    assert hold_mass(share, 0.8).tolist() == [[False, True, False], [True, True, False]]
    assert not hold_mass(share, 0.0).any()


@pytest.mark.parametrize("scorer", [CAKE(window=8), DefensiveKV(window=8)])
def test_prompts_inside_the_window_have_equal_scores(scorer):
    queries, layer = with_output()
    for tokens in (1, 8):
        less = replace(layer, keys=layer.keys[:, :tokens], values=layer.values[:, :tokens])
        assert (score(scorer, queries[:, :tokens], less) == 0).all()
