"""Utility probe: the fit against a dense least-squares solve, the score against its own features, the file's checks."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from baselines.keydiff import KeyDiff
from lukv.allocation import Budget, Uniform
from lukv.backend.generate import append, compress
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.contract import rope
from lukv.learned import Probe
from lukv.probe import BLOCK, SCALAR_FEATURES, ProbeFit, UtilityProbe, features
from lukv.scoring import PromptLayer
from lukv.selection import Eviction, Protection
from tests.core.small_models import small_model, text
from tests.reference.dense_reference import kept_by, rows, tiny_model

LAYERS, HEADS, D, DV = 2, 3, 8, 6
SIZE = D + DV + SCALAR_FEATURES
PROTECTION = Protection(2, 1)


def context(seed, tokens, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(LAYERS, HEADS, tokens, n, generator=generator, dtype=dtype) for n in (D, DV))
    layers = [
        PromptLayer(i, LAYERS, keys[i], values[i], 6, D**-0.5, rope=lambda at: rope(at, D)) for i in range(LAYERS)
    ]
    return layers, torch.rand(LAYERS, HEADS, tokens, generator=generator, dtype=dtype) ** 3


CONTEXTS = [context(seed, tokens) for seed, tokens in enumerate((40, 90, 61))]


def fit_of(contexts, **options):
    fit = ProbeFit(**options)
    for layers, utility in contexts:
        fit.add(layers, utility, PROTECTION)
    return fit


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 0.5])
def test_the_fit_is_the_ridge_regression_solved_densely(ridge):
    fit = fit_of(CONTEXTS, eps=1e-3, ridge=ridge)
    for index in range(LAYERS):
        for head in range(HEADS):
            rows, targets = [], []
            for layers, utility in CONTEXTS:
                free = slice(PROTECTION.sink, utility.shape[-1] - PROTECTION.recent)
                x = features(layers[index])[head, free].numpy()
                rows.append(x / np.sqrt(len(x) * len(CONTEXTS)))  # every context weighs the same
                targets.append(np.log(utility[index, head, free].numpy() + 1e-3) / np.sqrt(len(x) * len(CONTEXTS)))
            x, y = np.concatenate(rows), np.concatenate(targets)
            mean = (x * x[:, -1:]).sum(0)  # the last column is the constant, so this is the weighted mean
            variance = (x**2).sum(0) - mean**2
            penalty = np.diag(np.sqrt(ridge * np.append(variance[:-1], 0)))
            dense = np.linalg.lstsq(np.concatenate([x, penalty]), np.append(y, np.zeros(SIZE)), rcond=None)[0]
            np.testing.assert_allclose(fit.weights()[index, head], dense, rtol=1e-8, atol=1e-10)


def test_a_feature_that_never_varies_gets_no_weight():
    layers, utility = context(1, 50)
    still = [replace(layer, values=layer.values * torch.tensor([1.0] * 5 + [0.0])) for layer in layers]
    weights = fit_of([(still, utility)]).weights()
    np.testing.assert_array_equal(weights[..., D + DV - 1], 0)
    assert np.isfinite(weights).all()


def test_going_on_from_a_saved_state_gives_the_same_bits():
    whole, first = fit_of(CONTEXTS), fit_of(CONTEXTS[:2])
    rest = ProbeFit(state={name: array.copy() for name, array in first.state.items()})
    rest.add(*CONTEXTS[2], PROTECTION)
    for name, array in whole.state.items():
        np.testing.assert_array_equal(rest.state[name], array)
    with pytest.raises(ValueError, match="another model"):
        whole.add([replace(layer, keys=layer.keys[:2], values=layer.values[:2]) for layer in CONTEXTS[0][0]],
                  CONTEXTS[0][1][:, :2], PROTECTION)  # fmt: skip
    with pytest.raises(ValueError, match="no context"):
        ProbeFit().weights()


def scorer_of(tmp_path, weights):
    Probe(weights.astype(np.float32), {}, UtilityProbe.kind).save(tmp_path / "utility_probe.probe.safetensors")
    return UtilityProbe(path=str(tmp_path / "utility_probe.probe.safetensors"))


@pytest.mark.parametrize("factor", [1.0, 1.3])  # YaRN scales cos and sin
@pytest.mark.parametrize("turned", [0, D - 2, D])
def test_the_score_is_the_features_times_the_weights(tmp_path, turned, factor):
    scorer = scorer_of(tmp_path, np.random.default_rng(0).normal(size=(LAYERS, HEADS, SIZE)))
    layers, _ = context(3, BLOCK + 70, torch.float32)
    embedding = None if turned == 0 else lambda at: tuple(factor * part for part in rope(at, turned))
    layer = replace(layers[1], rope=embedding)
    x = features(replace(layer, keys=layer.keys.double(), values=layer.values.double()))
    exact = (x @ scorer.read_weights(layer).double()[..., None])[..., 0]
    scores = scorer.score(layer)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), exact, rtol=1e-4, atol=1e-4)
    in_blocks = torch.cat([features(layer, slice(a, a + BLOCK)) for a in (0, BLOCK)], 1)
    torch.testing.assert_close(in_blocks, x.float(), rtol=1e-4, atol=1e-4)


def test_one_feature_is_keydiffs_score():
    layers, _ = context(5, 200)
    torch.testing.assert_close(features(layers[0])[..., -2].float(), -KeyDiff().score(layers[0]))


def test_turned_back_keys_are_those_before_rope():
    layers, _ = context(4, 30)
    cos, sin = rope(torch.arange(30), D)
    plain = layers[0].keys
    half = torch.cat([-plain[..., D // 2 :], plain[..., : D // 2]], -1)
    turned = replace(layers[0], keys=plain * cos + half * sin)
    torch.testing.assert_close(features(turned)[..., :D], plain, rtol=1e-5, atol=1e-6)


def test_a_utility_that_is_linear_in_the_features_is_learnt_on_a_model(tmp_path):
    """Through a real cache: the oracle shows the same layers that score() sees in an eviction."""
    loaded = small_model("llama")
    fit, weights = ProbeFit(ridge=0.0), None
    for seed in range(4):
        layers = UtilityOracle(loaded, OracleSettings(horizon=1)).prefill(text(seed, 80)).layers(UtilityProbe())
        if weights is None:
            size = features(layers[0]).shape[-1]
            weights = torch.randn(3, 2, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64) / 10
        worth = torch.stack([(features(layer) @ weights[i][..., None])[..., 0] for i, layer in enumerate(layers)]).exp()
        fit.add(layers, worth - fit.eps, PROTECTION)
    np.testing.assert_allclose(fit.weights(), weights, rtol=1e-5, atol=1e-6)
    fit.save(tmp_path / "p.probe.safetensors", {"config_hash": loaded.config_hash, "weights_hash": loaded.weights_hash})
    scorer = UtilityProbe(path=str(tmp_path / "p.probe.safetensors"))
    scorer.check(loaded)
    scores = torch.stack([scorer.score(layer) for layer in layers])
    torch.testing.assert_close(scores.double(), worth.log(), rtol=1e-3, atol=1e-3)


@dataclass
class Model:
    name: str = "tiny"
    config_hash: str = "abc"
    weights_hash: str = "123"
    layers: int = LAYERS
    kv_heads: int = HEADS


def test_a_probe_of_another_model_is_refused(tmp_path):
    path = tmp_path / "tiny" / "tables" / "utility_probe.probe.safetensors"
    fit_of(CONTEXTS).save(path, {"config_hash": "abc", "weights_hash": "123"})
    scorer = UtilityProbe(path=str(path))
    scorer.check(Model())
    for other in (Model(config_hash="def"), Model(weights_hash="456")):
        with pytest.raises(ValueError, match="job=calibrate model=tiny scorer=utility_probe"):
            scorer.check(other)
    with pytest.raises(ValueError, match=r"or take it for these weights too, with scorer\.any_weights=true"):
        scorer.check(Model(weights_hash="456"))
    ours = UtilityProbe(path=str(path), any_weights=True)
    ours.check(Model(weights_hash="456"))
    assert ours.parameters() == scorer.parameters()  # a table for it serves both
    with pytest.raises(ValueError, match="made for config_hash"):
        ours.check(Model(config_hash="def", weights_hash="456"))
    assert scorer.probe.metadata["contexts"] == 3
    assert scorer.parameters()["probe"] == scorer.probe.hash
    with pytest.raises(ValueError, match="for 2 layers of 3 KV heads and 18 weights"):
        scorer.score(replace(CONTEXTS[0][0][0], layers=5))


def test_files_that_are_no_probe(tmp_path):
    path = tmp_path / "tiny" / "tables" / "utility_probe.probe.safetensors"
    with pytest.raises(FileNotFoundError, match="job=calibrate model=tiny scorer=utility_probe"):
        UtilityProbe(path=str(path)).probe  # noqa: B018
    path.parent.mkdir(parents=True)
    for content in (b"", b"hello" * 30):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a utility probe"):
            Probe.load(path, UtilityProbe.kind)
    weights = np.ones((LAYERS, HEADS, SIZE), dtype=np.float32)
    for arrays, header in (
        ({"weights": weights}, {}),
        ({"other": weights}, {"kind": "lukv utility probe", "json": "{}"}),
        ({"weights": weights.astype(np.float64)}, {"kind": "lukv utility probe", "json": "{}"}),
        ({"weights": weights * np.nan}, {"kind": "lukv utility probe", "json": "{}"}),
    ):
        save_file(arrays, path, header)
        with pytest.raises(ValueError, match="is not a utility probe"):
            Probe.load(path, UtilityProbe.kind)


def test_impossible_settings():
    for wrong in ({"eps": 0.0}, {"ridge": -1.0}):
        with pytest.raises(ValueError, match="above 0"):
            UtilityProbe(**wrong)


def test_a_probe_evicts_again_with_the_weights_of_each_head(tmp_path):
    """The first later eviction sees the whole prompt and keeps the same. After it each head holds tokens of its own."""
    prompt, more = rows([40]), rows([9], seed=1)
    model = tiny_model("qwen2", layers=2)
    keys, values = compress(model, prompt).view_entries(0, 0)
    shape = 2, len(keys), keys.shape[-1] + values.shape[-1] + SCALAR_FEATURES
    weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    Probe(weights, {}, UtilityProbe.kind).save(tmp_path / "any.probe.safetensors")
    probe = UtilityProbe(path=str(tmp_path / "any.probe.safetensors"))
    wanted = Eviction(probe, Uniform(), PROTECTION, Budget(tokens=12))
    at_once, later = compress(model, prompt, eviction=wanted), compress(model, prompt, later=wanted)
    later.evict_again()
    kept = [[kept_by(cache, 0)[i] for i in range(2)] for cache in (at_once, later)]
    for mine, other in zip(*kept, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, other, strict=True))
    append(model, later, more)
    later.evict_again()
    assert (later.kept_counts == 12).all()
