"""The configs under conf/, built as the program builds them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lukv.budgets.curve import MeanCurve
from lukv.budgets.table import BudgetTable
from lukv.budgets.threshold import MeanThreshold
from lukv.conf import read_option
from lukv.learned import LearnedScorer, Probe

CONF = Path(__file__).parents[2] / "conf"


def pytest_generate_tests(metafunc):
    """An argument called any_scorer, any_allocator or any_method: every config of that group."""
    for group in ("scorer", "allocator", "method"):
        if f"any_{group}" in metafunc.fixturenames:
            metafunc.parametrize(f"any_{group}", sorted(path.stem for path in (CONF / group).glob("*.yaml")))


@pytest.fixture
def build(tmp_path):
    """build(scorer="snapkv", allocator="budget_table", ...) gives these objects. Budget table, curve and probe are
    synthetic."""

    def build(layers=3, kv_heads=2, head_dim=16, **groups):
        root = OmegaConf.create({"seed": 0, "model": {"tables": str(tmp_path)}})
        for group, name in groups.items():
            root[group] = read_option(group, name)
        if "path" in root.get("allocator", {}):
            made_up_table(layers, kv_heads).save(tmp_path / f"{root.scorer.name}.safetensors")
        if groups.get("allocator") == "lu_curve":
            made_up_curve(layers, kv_heads).save(tmp_path / f"{root.scorer.name}.curve.safetensors")
        if groups.get("allocator") == "threshold":
            made_up_thresholds().save(tmp_path / f"{root.scorer.name}.threshold.safetensors")
        parts = [instantiate(root[group]) for group in groups]
        for scorer in parts:
            if isinstance(scorer, LearnedScorer):
                shape = layers, kv_heads, scorer.count_weights(head_dim, head_dim)
                weights = np.random.default_rng(0).normal(size=shape).astype(np.float32)
                Probe(weights, {}, scorer.kind).save(scorer.path)
        return parts

    return build


def made_up_table(layers, kv_heads, seed=0):
    """Uneven shares, at least 0.3 b in every head, whose mean over the heads is each of the 99 budgets b."""
    power = np.random.default_rng(seed).uniform(0.3, 3.0, (layers, kv_heads))
    kept = np.empty((99, layers, kv_heads))
    for i, budget in enumerate(np.arange(99, 0, -1) / 100):
        low, high = 1e-6, 1.0  # x with mean(x ** power) = budget
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if (middle**power).mean() < budget else (low, middle)
        kept[i] = 0.3 * budget + 0.7 * low**power
    return BudgetTable(kept)


def made_up_curve(layers, kv_heads, seed=0):
    mean = MeanCurve(layers, kv_heads, protected=5)
    random = np.random.default_rng(seed)
    for tokens in (80, 300):
        mean.add(random.pareto(1, (layers, kv_heads, tokens)) / np.arange(1, tokens + 1))
    return mean.table({"sink": 4, "recent": 1})


def made_up_thresholds():
    mean = MeanThreshold()
    mean.add(torch.randn(3, 2, 90, generator=torch.Generator().manual_seed(0)), torch.arange(90) < 4)
    return mean.thresholds({})
