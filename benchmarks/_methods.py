"""The scorers and methods of conf/, as their yaml files name them, with made-up files of what is measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lukv.allocation import Allocator
from lukv.budgets.curve import QUANTILE_BINS, Knots
from lukv.budgets.solver import PRUNED_PERCENT
from lukv.budgets.table import BudgetTable
from lukv.conf import GROUPS, read_method_defaults, read_option, resolve
from lukv.learned import LearnedScorer, Probe
from lukv.named import make
from lukv.scoring import Scorer
from lukv.selection import Protection


def make_scorer(name: str, folder: Path, layers: int, kv_heads: int, head_dim: int = 128) -> Scorer:
    """A scorer by name. If it is a learned one, a probe of ones is written into `folder`."""
    scorer: Scorer = make(fill_in("scorer", {"scorer": {**read_option("scorer", name)}}, folder))
    if isinstance(scorer, LearnedScorer):
        shape = layers, kv_heads, scorer.count_weights(head_dim, head_dim)
        Probe(np.ones(shape, dtype=np.float32), {}, scorer.kind).save(scorer.path)
    return scorer


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
    for method in GROUPS["method"]:
        chosen = read_method_defaults(method)
        if chosen.get("scorer") is None:
            continue
        scorer = make_scorer(chosen["scorer"], folder, layers, kv_heads, head_dim)
        table.save(folder / f"{scorer.name}.safetensors")
        curve.save(folder / f"{scorer.name}.curve.safetensors")
        known = {group: {**read_option(group, chosen[group])} for group in ("scorer", "allocator", "protection")}
        allocator, protection = (make(fill_in(group, known, folder)) for group in ("allocator", "protection"))
        found[method] = scorer, allocator, protection
    return found


def fill_in(group: str, known: dict[str, Any], folder: Path) -> dict[str, Any]:
    return resolve(group, {**known, "seed": 0, "model": {"tables": str(folder)}})
