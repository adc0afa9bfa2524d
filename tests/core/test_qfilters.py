"""Q-Filters: the filters against a plain SVD of all queries, the score by hand, calibration through a real model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from lukv.backend.generate import compress
from lukv.budgets.calibrate import CalibrationContext, CalibrationSettings, fit
from lukv.budgets.oracle import OracleSettings
from lukv.learned import Probe
from lukv.qfilters import FilterFit, QFilters, QueryMoments
from lukv.scoring import PromptLayer
from lukv.selection import Protection
from tests.core.small_models import small_model, text

LAYERS, KV_HEADS, GROUP, D = 2, 3, 2, 8


def queries(seed, tokens):
    """[layers, H, tokens, d] with a direction in common, so that the first singular vector stands out."""
    generator = torch.Generator().manual_seed(seed)
    side = torch.randn(LAYERS, KV_HEADS * GROUP, 1, D, generator=torch.Generator().manual_seed(99))
    return side + torch.randn(LAYERS, KV_HEADS * GROUP, tokens, D, generator=generator)


def observed_layers(q, cuts=()):
    layers = []
    for index, layer in enumerate(q):
        seen, edges = None, [0, *cuts, layer.shape[1]]
        for start, end in pairwise(edges):
            seen = QueryMoments().observe(seen, layer[:, start:end], start, None)
        keys = torch.zeros(KV_HEADS, layer.shape[1], D)
        layers.append(PromptLayer(index, LAYERS, keys, keys, KV_HEADS * GROUP, 1.0, observed=seen))
    return layers


def fit_of(*prompts, cuts=()):
    fit = FilterFit()
    for q in prompts:
        fit.add(observed_layers(q, cuts), torch.zeros(0), Protection())
    return fit


def test_filters_are_the_first_singular_vectors_of_all_queries_turned_to_their_side():
    prompts = [queries(seed, tokens) for seed, tokens in enumerate((40, 90))]
    found = fit_of(*prompts, cuts=(3, 17)).filters()
    together = torch.cat(prompts, 2).double().numpy()
    for layer in range(LAYERS):
        for head in range(KV_HEADS):
            turned = []
            for q in together[layer, head * GROUP : (head + 1) * GROUP]:
                left, _, right = np.linalg.svd(q, full_matrices=False)
                turned.append(right[0] if (left[:, 0] > 0).mean() > 0.5 else -right[0])
            np.testing.assert_allclose(found[layer, head], np.mean(turned, 0), rtol=1e-9, atol=1e-9)


def test_a_key_on_the_queries_side_scores_higher_and_the_score_is_the_product(tmp_path):
    weights = np.zeros((1, 2, 2), dtype=np.float32)
    weights[0] = [[1, 0], [0, -2]]
    Probe(weights, {}, QFilters.kind).save(tmp_path / "q.probe.safetensors")
    keys = torch.tensor([[[3.0, 4.0], [-1.0, 9.0]], [[3.0, 4.0], [-1.0, 9.0]]]).bfloat16()
    layer = PromptLayer(0, 1, keys, keys, 4, 1.0)
    scorer = QFilters(path=str(tmp_path / "q.probe.safetensors"))
    assert scorer.score(layer).tolist() == [[3.0, -1.0], [-8.0, -18.0]]
    alone = replace(layer, keys=keys[1:], values=keys[1:], head=1)
    assert scorer.score(alone).tolist() == [[-8.0, -18.0]]


def test_calibration_sees_the_queries_of_a_real_model_and_goes_on_to_the_same_bits(tmp_path):
    """The filters of a model are those of the queries that its attention gets; at run time none is observed."""
    model = small_model("qwen2")
    contexts = [CalibrationContext(tuple(text(i, 30 + i)), ((tuple(text(i, 3)), ()),)) for i in range(3)]
    settings = CalibrationSettings(OracleSettings(horizon=2))
    (whole,) = fit(model, [QFilters()], Protection(), contexts, settings, tmp_path / "whole")
    fit(model, [QFilters()], Protection(), contexts[:1], settings, tmp_path / "stopped")
    (resumed,) = fit(model, [QFilters()], Protection(), contexts, settings, tmp_path / "stopped")
    np.testing.assert_array_equal(whole.filters(), resumed.filters())
    total = 0
    for context in contexts:
        cache = compress(model.model, [list(context.ids)], observe=[QueryMoments()])
        views = [layer.view(0, *cache.view_entries(i, 0), QueryMoments()) for i, layer in enumerate(cache.evictable)]
        total += torch.stack([view.observed[0] for view in views])
    np.testing.assert_allclose(whole.state["total"].reshape(total.shape), total, rtol=1e-12)
    about = {"config_hash": model.config_hash, "weights_hash": model.weights_hash}
    whole.save(tmp_path / "tiny" / "tables" / "qfilters.probe.safetensors", about)
    scorer = QFilters(path=str(tmp_path / "tiny" / "tables" / "qfilters.probe.safetensors"))
    scorer.check(model)
    assert scorer.probe.metadata["contexts"] == 3
    assert scorer.observe(None, torch.zeros(4, 2, D), 0, None) is None
    with pytest.raises(ValueError, match="was made for config_hash"):
        scorer.check(small_model("llama"))


def test_no_context_and_another_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no context was measured"):
        FilterFit().save(tmp_path / "q", {})
    fit = fit_of(queries(0, 20))
    with pytest.raises(ValueError, match="another model"):
        fit.add(observed_layers(queries(0, 20)[:1]), torch.zeros(0), Protection())
    with pytest.raises(FileNotFoundError, match=r"scorer=qfilters job\.save=true"):
        QFilters(path=str(tmp_path / "tiny" / "tables" / "qfilters.probe.safetensors")).probe  # noqa: B018
