"""The methods of conf/method, as their yaml files name them, with made-up files of what is measured on a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from benchmarks._section import ROOT
from lukv.allocation import Allocator
from lukv.budgets.curve import QUANTILE_BINS, Knots
from lukv.budgets.solver import PRUNED_PERCENT
from lukv.budgets.table import BudgetTable
from lukv.learned import LearnedScorer, Probe
from lukv.scoring import Scorer
from lukv.selection import Protection

CONF = ROOT / "conf"


def methods(
    folder: Path, layers: int, kv_heads: int, head_dim: int = 128
) -> dict[str, tuple[Scorer, Allocator, Protection]]:
    """Every method that evicts. Budget table, loss curve and probe, for any scorer, are written into `folder`."""
    budget = 1 - PRUNED_PERCENT[:, None, None] / 100
    spread = np.linspace(-0.75, 0.75, layers * kv_heads).reshape(layers, kv_heads)
    kept = budget + np.minimum(budget, 1 - budget) * spread
    price = np.linspace(1, 2, layers * kv_heads)[:, None] / np.arange(1, 5 + QUANTILE_BINS + 1)
    knots = Knots.of(price, np.ones(5 + QUANTILE_BINS), 5).array()
    table, curve = BudgetTable(kept), BudgetTable(kept, metadata={"sink": 4, "recent": 1}, knots=knots)
    found: dict[str, tuple[Scorer, Allocator, Protection]] = {}
    for path in sorted((CONF / "method").glob("*.yaml")):
        names = [entry for entry in OmegaConf.load(path).get("defaults", []) if not isinstance(entry, str)]
        chosen = {str(k).rpartition("/")[2]: v for entry in names for k, v in entry.items()}
        if chosen["scorer"] is None:
            continue
        root: Any = OmegaConf.create({"seed": 0, "model": {"tables": str(folder)}})
        for group in ("scorer", "allocator", "protection"):
            root[group] = OmegaConf.load(CONF / group / f"{chosen[group]}.yaml")
        table.save(folder / f"{root.scorer.name}.safetensors")
        curve.save(folder / f"{root.scorer.name}.curve.safetensors")
        scorer, allocator, protection = (instantiate(root[group]) for group in ("scorer", "allocator", "protection"))
        if isinstance(scorer, LearnedScorer):
            shape = layers, kv_heads, scorer.count_weights(head_dim, head_dim)
            Probe(np.ones(shape, dtype=np.float32), {}, scorer.kind).save(scorer.path)
        found[path.stem] = scorer, allocator, protection
    return found
