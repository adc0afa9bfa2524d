"""Utility MLP: it learns what a line cannot, its files and samples, KVzip+ as a teacher, and the network's algebra."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.kvzip import KVzipPlus
from lukv.budgets.calibrate import CalibrationContext, CalibrationSettings, fit
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.learned import Probe
from lukv.mlp import FROM_ONE, ROWS, MLPFit, Network, UtilityMLP
from lukv.model import load
from lukv.probe import BLOCK, ProbeFit, UtilityProbe, features
from lukv.selection import Protection
from tests.core.test_probe import CONTEXTS, DV, HEADS, LAYERS, PROTECTION, D, context

INPUTS = D + DV + 3


def networks(count, hidden=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (1,), (INPUTS,), (hidden,), (hidden,), (INPUTS, hidden)
    return Network(*(torch.randn(count, *shape, generator=generator, dtype=torch.float64) for shape in shapes))


def test_a_network_is_its_formula_and_comes_back_from_its_weights():
    network = networks(3)
    x = torch.randn(3, 7, INPUTS, dtype=torch.float64)
    for head in range(3):
        for token in range(7):
            row = x[head, token]
            inside = row @ network.W[head] + network.b[head]
            bent = (inside * 0.5 * (1 + torch.erf(inside / 2**0.5))) @ network.c[head]
            torch.testing.assert_close(network(x)[head, token], network.a[head, 0] + row @ network.w[head] + bent)
    again = Network.unpack(network.pack(), 5)
    assert all(torch.equal(a, b) for a, b in zip(network.parts, again.parts, strict=True))
    assert network.pack().shape[1] == UtilityMLP(hidden=5).count_weights(D, DV)


def test_standardised_inputs_can_be_folded_into_the_weights():
    network, x = networks(2), torch.randn(2, 30, INPUTS, dtype=torch.float64) * 3 + 1
    mean, scale = x.mean(1), 1 / x.std(1)
    expected = network((x - mean[:, None]) * scale[:, None])
    torch.testing.assert_close(network.on_plain_inputs(mean, scale)(x), expected)


def bent(layers):
    """A utility that no line can tell: the size of the first value dimension."""
    return torch.stack([(2 * layer.values[..., 0].abs()).exp() for layer in layers])


def test_it_learns_what_the_probe_cannot(tmp_path):
    mlp, line = MLPFit(), ProbeFit()
    for seed in range(8):
        layers, _ = context(seed, 300, torch.float32)
        for each in (mlp, line):
            each.add(layers, bent(layers).double(), PROTECTION)
    layers, _ = context(99, BLOCK + 60, torch.float32)
    wanted = (bent(layers) + 1e-3).log()
    missed = []
    for each, scorer in ((mlp, UtilityMLP()), (line, UtilityProbe())):
        path = tmp_path / f"{scorer.name}.probe.safetensors"
        each.save(path, {})
        scores = torch.stack([scorer.load_fit(path).score(layer) for layer in layers])
        assert scores.dtype == torch.float32
        missed.append(float((scores - wanted).square().mean()))
    assert missed[0] < 0.2 * missed[1]


def test_the_score_is_the_networks_of_the_features(tmp_path):
    packed = networks(LAYERS * HEADS, 16).pack().unflatten(0, (LAYERS, HEADS)).float()
    Probe(packed.numpy(), {}, UtilityMLP.kind).save(tmp_path / "any.probe.safetensors")
    scorer = UtilityMLP(path=str(tmp_path / "any.probe.safetensors"))
    layers, _ = context(3, BLOCK + 70, torch.float32)
    expected = Network.unpack(packed[1], 16)(features(layers[1])[..., :-1])
    torch.testing.assert_close(scorer.score(layers[1]), expected, rtol=1e-4, atol=1e-4)
    alone = replace(layers[1], keys=layers[1].keys[2:], values=layers[1].values[2:], query_heads=2, head=2)
    torch.testing.assert_close(scorer.score(alone), expected[2:], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="the utility MLP is for 2 layers of 3 KV heads and"):
        replace(scorer, hidden=8).score(layers[1])


def test_every_context_has_the_same_part_of_a_full_sample():
    fit = MLPFit()
    layers, _ = context(0, 700, torch.float32)
    for number in range(24):
        fit.add(layers, torch.full((LAYERS, HEADS, 700), float(number + 1)), PROTECTION)
    assert fit.state["y"].shape == (LAYERS, HEADS, ROWS)
    assert fit.state["x"].shape == (LAYERS, HEADS, ROWS, INPUTS)
    owners = np.rint(np.exp(fit.state["y"][1, 2])).astype(int) - 1
    parts = np.bincount(owners, minlength=24)
    assert parts.sum() == ROWS
    assert parts.min() > 0.6 * ROWS / 24
    assert parts.max() < 1.4 * ROWS / 24
    assert ROWS // 24 < FROM_ONE


def test_going_on_from_a_saved_state_gives_the_same_bits_and_others_are_refused():
    whole, first = MLPFit(), MLPFit()
    for fit_, some in ((whole, CONTEXTS), (first, CONTEXTS[:2])):
        for layers, utility in some:
            fit_.add(layers, utility, PROTECTION)
    rest = MLPFit(state={name: array.copy() for name, array in first.state.items()})
    rest.add(*CONTEXTS[2], PROTECTION)
    for name, array in whole.state.items():
        np.testing.assert_array_equal(rest.state[name], array)
    torch.testing.assert_close(rest.train().pack(), whole.train().pack(), rtol=0, atol=0)
    fewer = [replace(layer, keys=layer.keys[:2], values=layer.values[:2]) for layer in CONTEXTS[0][0]]
    with pytest.raises(ValueError, match="another model"):
        whole.add(fewer, CONTEXTS[0][1][:, :2], PROTECTION)
    with pytest.raises(ValueError, match="no context"):
        MLPFit().save("nowhere", {})
    for wrong in ({"eps": 0.0}, {"hidden": 0}):
        with pytest.raises(ValueError, match="above 0"):
            UtilityMLP(**wrong)


def test_it_can_be_taught_another_scorers_scores(model, tmp_path):
    """Through a real model: the teacher's extra passes are run in the fit, and only there."""
    loaded = load(model, device="cpu")
    prompts = [loaded.prompt_ids(f"The bells of town {i} ring at noon. " * 2, "When?", "") for i in range(2)]
    contexts = [CalibrationContext(tuple(ids), ((tuple(question), ()),)) for ids, question in prompts]
    teacher = KVzipPlus(chunk=30)
    pupil = UtilityMLP("kvzip_mlp", target=teacher)
    settings = CalibrationSettings(OracleSettings(horizon=2))
    (taught,) = fit(loaded, [pupil], Protection(), contexts, settings, tmp_path / "state")
    expected = MLPFit(pupil.eps, hidden=pupil.hidden)
    for context_ in contexts:
        layers = UtilityOracle(loaded).prefill(context_.ids, [teacher]).layers(teacher)
        worth = torch.stack([teacher.score(layer) for layer in layers])
        expected.add(layers, worth, Protection())
    for name, array in expected.state.items():
        np.testing.assert_allclose(taught.state[name], array, rtol=1e-5, atol=1e-6)
    taught.save(tmp_path / "kvzip_mlp.probe.safetensors", {})
    ready = pupil.load_fit(tmp_path / "kvzip_mlp.probe.safetensors")
    assert ready.probe.metadata["target"]["name"] == "kvzip_plus"
    assert not ready.makes_passes
    assert not ready.needs_hidden
