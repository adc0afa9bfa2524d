"""How well a scorer's ranking predicts each head's future utility: the paper's heterogeneity of predictive fidelity.

    python -m scripts.studies.fidelity                                             # the embedded model
    python -m scripts.studies.fidelity --model smollm2-135m-q4 --sources FOLDER    # RULER's own essays
    python -m scripts.studies.fidelity --experiment embedded_atlas --tables runs/tables/atlas/tiny    # a sweep's

It writes docs/data/MODEL-fidelity.json and docs/figures/MODEL-fidelity.png; of a sweep's scorers, with the probes in
--tables, docs/data/MODEL-EXPERIMENT-fidelity.json alone.

For every (layer, KV head) it measures two means over contexts of RULER's tasks, with a seed of their own. `captured` is
the utility of the fifth of the tokens that the scorer ranks first, divided by that of the fifth with most utility.
`spearman` is the rank correlation of scorer and utility. It also reads which share of its tokens the head keeps in the
shipped table at 20%, and how much the shipped tables of different scorers agree about the heads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from evals.plots import draw_heads
from evals.ruler import Ruler
from evals.text import table
from lukv.artifacts import write_atomically
from lukv.budgets.oracle import OracleSettings, UtilityOracle
from lukv.budgets.table import BudgetTable
from lukv.conf import GROUPS, fill, read_option, resolve
from lukv.learned import LearnedScorer
from lukv.model import LoadedModel, load
from lukv.named import make
from lukv.scoring import Scorer
from lukv.selection import Protection

DOCS = Path(__file__).parents[2] / "docs"
SEED = 20_042
SHARE = 0.2
SCORERS = ("keydiff", "expected_attention", "snapkv", "random")
LEARNT = (
    *("niah_single_1", "niah_multikey_1_prose", "niah_multikey_2", "niah_multivalue_noise", "niah_multiquery_prose"),
    "vt",
)
"""What the embedded model was trained on, without RULER's essays."""
ESSAYS = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery", "vt")

Heads = Mapping[str, Any]
"""Scorer -> [layers][KV heads]."""


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


def make_scorers(names: Sequence[str], loaded: LoadedModel, settings: Mapping[str, Any]) -> list[Scorer]:
    """The scorers of conf/ for a model with these settings of conf/model. Raises an error for another one's probe."""
    known = {"seed": 0, "model": settings}
    scorers = [make(resolve("scorer", {**known, "scorer": read_option("scorer", name)})) for name in names]
    for scorer in scorers:
        if isinstance(scorer, LearnedScorer):
            scorer.check(loaded)
    return scorers


def measure(
    loaded: LoadedModel, scorers: Sequence[Scorer], tasks: Sequence[str], samples: int, sources: str | None
) -> dict[str, Any]:
    """{"captured" | "spearman": {scorer: [layers][KV heads]}, "facts": ...}."""
    oracle, protection = UtilityOracle(loaded, OracleSettings()), Protection()
    sums: dict[str, dict[str, list[Tensor]]] = {m: {s.name: [] for s in scorers} for m in ("captured", "spearman")}
    ruler = Ruler(length=1024, tasks=list(tasks), samples=samples, seed=SEED, sources=sources)
    contexts = [sample for task in ruler.tasks(loaded.tokenizer) for sample in task.samples]
    for sample in tqdm(contexts, unit="context", mininterval=5):
        context, question = loaded.prompt_ids(sample.context, sample.question, sample.answer_prefix)
        measured = oracle.prefill(context, scorers)
        utility = measured.utility(question).double()
        for scorer in scorers:
            order = measured.order(scorer, protection, utility.float() if scorer.needs_answer else None)
            sums["captured"][scorer.name].append(captured_share(utility, order, SHARE))
            sums["spearman"][scorer.name].append(spearman(utility, order))
    means = {
        measure: {name: torch.stack(each).mean(0).numpy().round(3).tolist() for name, each in by_scorer.items()}
        for measure, by_scorer in sums.items()
    }
    facts = {"tasks": list(tasks), "contexts": len(contexts), "length": 1024, "seed": SEED}
    return {"facts": facts, **means}


def read_kept(tables: Path) -> dict[str, list[list[float]]]:
    """What each head keeps at 20% by the shipped table of each scorer that has one."""
    files = {name: tables / f"{name}.safetensors" for name in SCORERS}
    return {n: BudgetTable.load(f).shares(SHARE).round(3).tolist() for n, f in files.items() if f.is_file()}


def compare_rankings(heads: Heads) -> dict[str, float]:
    """For each pair of scorers, "ONE, OTHER": the rank correlation of their values over all heads."""
    pairs = combinations(heads, 2)
    return {f"{a}, {b}": round(float(spearmanr(np.ravel(heads[a]), np.ravel(heads[b]))[0]), 3) for a, b in pairs}


def describe_budgets(kept: Heads, captured: Heads) -> dict[str, dict[str, float]]:
    """Of each table, all at 20%: the share of heads that keep less than 2% and more than 50%, the part of the budgets'
    variance that lies between the heads of one layer, and the rank correlation over heads of what is kept with what the
    scorer captures."""
    found = {}
    for name, values in kept.items():
        shares = np.array(values)
        within = (shares - shares.mean(1, keepdims=True)).var() / shares.var()
        follows = spearmanr(shares.ravel(), np.ravel(captured[name]))[0]
        numbers = {"below 2%": (shares < 0.02).mean(), "above 50%": (shares > 0.5).mean()}
        numbers |= {"variance within layers": within, "rank correlation with captured": follows}
        found[name] = {key: round(float(number), 3) for key, number in numbers.items()}
    return found


def draw(measured: Mapping[str, Any], model: str, path: Path) -> None:
    """Above, the utility that each scorer captures of each head; below, what LU-KV's table for this scorer keeps."""
    names = {name: name.replace("_", " ") for name in measured["kept"]}
    panels = {f"{names[name]}: utility captured": measured["captured"][name] for name in names}
    panels |= {f"{names[name]}: kept by LU-KV": measured["kept"][name] for name in names}
    n = measured["facts"]["contexts"]
    title = f"{model}: a scorer's best fifth against the best fifth by utility; LU-KV's budgets at 20% (n = {n})"
    draw_heads(panels, title, path, columns=len(names), scale="share", formats=(".png", ".pdf"))


def summarise(measured: Mapping[str, Any]) -> str:
    """Of each scorer: the share captured in the lowest, median and highest head, and the rank correlation."""
    rows = [["scorer", "lowest head", "median", "highest", "median rank correlation"]]
    for name, values in measured["captured"].items():
        low, middle, high = np.quantile(values, [0, 0.5, 1])
        cells = [name, f"{low:.2f}", f"{middle:.2f}", f"{high:.2f}", f"{np.median(measured['spearman'][name]):.2f}"]
        rows.append(cells)
    return table(rows)


def list_scorers(experiment: str) -> list[str]:
    """The scorers that a sweep of conf/experiment names."""
    return str(read_option("experiment", experiment)["hydra"]["sweeper"]["params"]["scorer"]).split(",")


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", default="tiny", choices=sorted(GROUPS["model"]), metavar="NAME", help="of conf/")
    parser.add_argument("--sources", help="folder with RULER's PaulGrahamEssays.json; without: tasks that need none")
    parser.add_argument("--samples", type=int, default=5, help="contexts of each of the six tasks")
    parser.add_argument("--experiment", choices=sorted(GROUPS["experiment"]), metavar="NAME", help="whose scorers")
    parser.add_argument("--tables", help="folder of the budget tables and probes; without: the model's own")
    asked = parser.parse_args()
    settings = fill(read_option("model", asked.model), {})
    settings["tables"] = str(Path(asked.tables or settings["tables"]).absolute())
    loaded = load(**{key: value for key, value in settings.items() if key != "tables"})
    scorers = make_scorers(list_scorers(asked.experiment) if asked.experiment else SCORERS, loaded, settings)
    measured = measure(loaded, scorers, ESSAYS if asked.sources else LEARNT, asked.samples, asked.sources)
    name = f"{asked.model}-{asked.experiment}-fidelity" if asked.experiment else f"{asked.model}-fidelity"
    if not asked.experiment:
        measured["kept"] = read_kept(Path(settings["tables"]))
        measured["agreement of tables"] = compare_rankings(measured["kept"])
        measured["budgets"] = describe_budgets(measured["kept"], measured["captured"])
        draw(measured, asked.model, DOCS / "figures" / f"{name}.png")
        print("rank correlation of the tables over heads:", measured["agreement of tables"])
        print("budgets:", measured["budgets"])
    write_atomically(DOCS / "data" / f"{name}.json", json.dumps(measured).encode())
    print(summarise(measured))


if __name__ == "__main__":
    main()
