"""How well a scorer's ranking predicts each head's future utility: the paper's heterogeneity of predictive fidelity.

    python -m scripts.studies.fidelity              # -> models/tiny/fidelity.json, docs/figures/fidelity.png
    python -m scripts.studies.fidelity by_layer=runs/by-layer/tables    # also tables averaged over each layer's heads

For every (layer, KV head) it measures two means over contexts of RULER's tasks, with seeds of their own. `captured` is
the utility of the fifth of the tokens that the scorer ranks first, divided by that of the fifth with most utility.
`spearman` is the rank correlation of scorer and utility. It also reads which share of its tokens the head keeps in the
shipped table at 20%.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.expected_attention import ExpectedAttention
from baselines.keydiff import KeyDiff
from baselines.random import Random
from baselines.snapkv import SnapKV
from evals.ruler import Ruler
from lukv.artifacts import write_atomically
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.budgets.table import BudgetTable
from lukv.model import LoadedModel, load
from lukv.scoring import Scorer
from lukv.selection import Protection
from models.tiny.tokenizer import FOLDER

SEED = 20_042
TASKS = (
    *("niah_single_1", "niah_multikey_1_prose", "niah_multikey_2", "niah_multivalue_noise", "niah_multiquery_prose"),
    "vt",
)
SHARE = 0.2
TABLES = FOLDER / "tables"
FIGURE = FOLDER.parents[1] / "docs" / "figures" / "fidelity.png"


def make_scorers() -> list[Scorer]:
    """The scorers with the parameters of conf/scorer."""
    return [
        KeyDiff(name="keydiff"),
        SnapKV(name="snapkv", window=32, kernel=7),
        ExpectedAttention(name="expected_attention", sink=4, future=512, eps=0.02),
        Random(name="random", seed=0),
    ]


def captured_share(utility: Tensor, order: Tensor, share: float) -> Tensor:
    """[...]: the utility of the first `share` of the order, divided by the most that so many tokens can hold.

    utility [..., T]; order [..., T]: positions, best first.
    """
    count = max(1, round(share * utility.shape[-1]))
    found = utility.gather(-1, order[..., :count]).sum(-1)
    return found / utility.topk(count, -1).values.sum(-1).clamp(min=torch.finfo(utility.dtype).tiny)


def spearman(utility: Tensor, order: Tensor) -> Tensor:
    """[...]: the correlation of the ranks, 1 if the order is that of falling utility. Ties are not averaged."""
    positions = torch.arange(utility.shape[-1], dtype=torch.float64)
    by_utility = utility.argsort(dim=-1, descending=True, stable=True).argsort(-1).double()
    by_scorer = torch.empty_like(by_utility).scatter_(-1, order, positions.expand_as(by_utility))
    by_utility, by_scorer = (ranks - positions.mean() for ranks in (by_utility, by_scorer))
    return (by_utility * by_scorer).sum(-1) / (positions - positions.mean()).square().sum()


def measure(loaded: LoadedModel, samples: int = 5, length: int = 1024) -> dict[str, Any]:
    """{"captured" | "spearman": {scorer: [layers][KV heads]}, "facts": ...}."""
    oracle, protection, chosen = UtilityOracle(loaded, OracleSettings()), Protection(), make_scorers()
    sums: dict[str, dict[str, list[Tensor]]] = {m: {s.name: [] for s in chosen} for m in ("captured", "spearman")}
    for task in Ruler(length=length, tasks=list(TASKS), samples=samples, seed=SEED).tasks(loaded.tokenizer):
        for sample in task.samples:
            context, question = loaded.prompt_ids(sample.context, sample.question, sample.answer_prefix)
            measured = oracle.prefill(context, chosen)
            utility = measured.utility(question).double()
            for scorer in chosen:
                order = measured.order(scorer, protection)
                sums["captured"][scorer.name].append(captured_share(utility, order, SHARE))
                sums["spearman"][scorer.name].append(spearman(utility, order))
    means = {
        measure: {name: torch.stack(each).mean(0).numpy().round(3).tolist() for name, each in by_scorer.items()}
        for measure, by_scorer in sums.items()
    }
    facts = {"tasks": list(TASKS), "contexts": len(sums["captured"]["random"]), "length": length, "seed": SEED}
    return {"facts": facts, **means}


def average_over_heads(table: BudgetTable) -> BudgetTable:
    """The table's budgets averaged over the heads of each layer, which shows what single heads' budgets are worth."""
    kept = np.broadcast_to(table.kept.mean(axis=2, keepdims=True), table.kept.shape)
    return replace(table, kept=kept.copy(), expected_loss=None, lower_bound=None, curve=None)


def draw(measured: dict[str, Any], path: Path) -> None:
    """A square for each (layer, KV head): the share that each scorer captures above, the share that is kept below."""
    from matplotlib.figure import Figure  # half a second

    names = list(measured["captured"])
    figure = Figure(figsize=(9.6, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots(2, len(names))
    for column, name in enumerate(names):
        rows = [(measured["captured"][name], f"{name.replace('_', ' ')}: utility captured")]
        if name in measured["kept"]:
            rows.append((measured["kept"][name], "kept by LU-KV's table"))
        else:
            axes[1, column].axis("off")
        for row, (values, title) in enumerate(rows):
            image = axes[row, column].imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for layer, line in enumerate(values):
                for head, value in enumerate(line):
                    color = "k" if value > 0.6 else "w"
                    axes[row, column].text(
                        head, layer, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color
                    )
            axes[row, column].set_title(title, fontsize=8)
            axes[row, column].set_xticks(range(len(values[0])))
            axes[row, column].set_yticks(range(len(values)))
            axes[row, column].tick_params(labelsize=7)
    figure.supxlabel("KV head", fontsize=8)
    figure.supylabel("layer", fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share, at 20% of the cache")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(arguments: list[str]) -> None:
    # one file a scorer; the others there have a second suffix (.curve, .probe)
    tables = {
        path.stem: BudgetTable.load(path) for path in sorted(TABLES.glob("*.safetensors")) if "." not in path.stem
    }
    for argument in arguments:
        key, _, folder = argument.partition("=")
        if key != "by_layer" or not folder:
            sys.exit(f"{argument!r}: the only argument is by_layer=FOLDER")
        for name, table in tables.items():
            average_over_heads(table).save(Path(folder) / f"{name}.safetensors")
    measured = measure(load(FOLDER, dtype="float32"))
    measured["kept"] = {
        scorer.name: tables[scorer.name].shares(SHARE).round(3).tolist()
        for scorer in make_scorers()
        if scorer.name in tables
    }
    write_atomically(FOLDER / "fidelity.json", json.dumps(measured).encode())
    draw(measured, FIGURE)
    print(json.dumps(measured["facts"]))


if __name__ == "__main__":
    main(sys.argv[1:])
