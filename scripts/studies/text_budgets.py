"""Do budgets that follow the text lose less than static ones? The utility lost on contexts that nothing was fitted to.

    python -m scripts.studies.text_budgets --sources FOLDER --dialogue FOLDER    # the table of docs/beyond.md

Every way to share out the budget ranks by the shipped utility probe. The static budgets and whatever follows the text
are fitted to the same contexts, as many of each kind (scripts/studies/text_contexts.py), and all minimise what is
measured: the summed utility U, not the U^1.5 of shipped curves. What is lost is the utility of the tokens that are not
kept, of all utility: the mean of the kinds. After it stands the paired difference from one static curve with its 95%
interval (bootstrap within each kind). Bounds look at what the held-out contexts' own answers were.

It writes docs/data/MODEL-text-budgets.json. What was measured of a context is kept in --store.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import isotonic_regression

from evals.differences import compare_pairs
from evals.report.tables import markdown_head, markdown_row
from lukv.allocation import Budget
from lukv.artifacts import write_atomically
from lukv.budgets.curve import CurveAllocator, Knots, MeanCurve
from lukv.conf import fill, read_option
from lukv.model import load
from lukv.named import method
from scripts.studies.text_contexts import Ranked, list_kinds, measure

DOCS = Path(__file__).parents[2] / "docs"
SHARES = (0.05, 0.1, 0.2)
PROTECTED = 5  # 4 sinks and the last token, as lukv_plus has them
BINS = 200  # of a head's scores, with as many tokens in each
ASKS = {"needles": "asks", "dialogue": "asks", "essays": "goes on", "code": "goes on"}
STATIC = "one curve (LU-curve)"

Contexts = Sequence[Ranked]
Counts = list[np.ndarray]
"""Of each context [layers, K] int64: how many of each head's best-ranked tokens stay."""


def find_total(context: Ranked, share: float) -> int:
    layers, heads, tokens = context.worth.shape
    return Budget(share=share).entries(tokens, layers * heads)


def find_lost(context: Ranked, counts: np.ndarray) -> float:
    """The share of a context's utility that is not kept."""
    stays = np.arange(context.worth.shape[-1]) < counts[..., None]
    return float(1 - context.worth[stays].sum(dtype=np.float64) / context.worth.sum(dtype=np.float64))


# Static budgets


def fit_curve(contexts: Contexts, power: float = 1) -> Knots:
    layers, heads, _ = contexts[0].worth.shape
    mean = MeanCurve(layers, heads, PROTECTED, power)
    for context in contexts:
        mean.add(context.worth)
    return mean.knots()


def count_by_curve(curve: Knots, context: Ranked, share: float) -> np.ndarray:
    counts = curve.counts(find_total(context, share), context.worth.shape[-1])
    return counts.reshape(context.worth.shape[:2])


# Budgets that follow the text


def share_out(prices: Sequence[np.ndarray], total: int) -> Counts:
    """The `total` dearest tokens of all prices [layers, K, T], which fall with the rank."""
    flat = -np.concatenate([price.ravel() for price in prices])
    chosen = np.zeros(flat.size, dtype=bool)
    chosen[np.argpartition(flat, min(total, flat.size - 1))[:total]] = True
    ends = np.cumsum([price.size for price in prices])[:-1]
    return [part.reshape(p.shape).sum(-1) for part, p in zip(np.split(chosen, ends), prices, strict=True)]


def price_as_predicted(context: Ranked) -> np.ndarray:
    """The probe's own prediction, log utility; protected tokens always stay."""
    price = context.scores.astype(np.float64)
    price[..., :PROTECTED] = np.inf
    return price


def share_out_layers(context: Ranked, static: np.ndarray) -> np.ndarray:
    """Each layer's static total, shared out by this prompt's predictions (scripts/studies/adaptive.py)."""
    price = price_as_predicted(context)
    return np.stack([share_out([row], int(n))[0] for row, n in zip(price, static.sum(1), strict=True)])


class ScorePrices:
    """What a score has been worth in its head: E[U | score], which rises with the score, and the mean utility of each
    protected rank. So predictions mean the same in every head, as threshold and top-k take them to."""

    def __init__(self, contexts: Contexts) -> None:
        free = np.concatenate([c.scores[..., PROTECTED:] for c in contexts], -1)
        worth = np.concatenate([c.worth[..., PROTECTED:] for c in contexts], -1)
        order = free.argsort(-1)
        parts = [
            np.array_split(np.take_along_axis(x, order, -1).astype(np.float64), BINS, axis=-1) for x in (free, worth)
        ]
        self.scores, means = (np.stack([part.mean(-1) for part in x], -1) for x in parts)
        self.prices = np.apply_along_axis(lambda row: isotonic_regression(row).x, -1, means)
        self.protected = np.mean([c.worth[..., :PROTECTED] for c in contexts], 0)

    def of(self, context: Ranked) -> np.ndarray:
        """[layers, K, T], falling with the rank."""
        price = np.empty(context.scores.shape)
        for head in np.ndindex(*price.shape[:2]):
            price[head] = np.interp(context.scores[head], self.scores[head], self.prices[head])
        price[..., :PROTECTED] = self.protected
        return make_falling(price)


def make_falling(worth: np.ndarray) -> np.ndarray:
    """The hull's slopes of worth [layers, K, T]: what the tokens up to each rank are worth a piece."""
    return np.apply_along_axis(lambda row: isotonic_regression(row, increasing=False).x, -1, worth)


class Chooser:
    """Which group a text is nearest to by its profile: what each head is predicted to be worth in the mean."""

    def __init__(self, groups: Mapping[str, Contexts]) -> None:
        profiles = {name: np.stack([self.profile(c) for c in contexts]) for name, contexts in groups.items()}
        self.spread = np.concatenate([*profiles.values()]).std(0)
        self.centres = {name: rows.mean(0) for name, rows in profiles.items()}

    def profile(self, context: Ranked) -> np.ndarray:
        return context.scores[..., PROTECTED:].mean(-1).ravel()

    def choose(self, context: Ranked) -> str:
        mine = self.profile(context)
        return min(self.centres, key=lambda name: np.square((mine - self.centres[name]) / self.spread).sum())


# The study


@dataclass(frozen=True)
class Material:
    """What every way to share out a budget reads. fitted, held: the contexts by kind."""

    fitted: Mapping[str, Contexts]
    held: Mapping[str, Contexts]

    @cached_property
    def contexts(self) -> list[Ranked]:
        """The held-out ones."""
        return join(self.held)

    @cached_property
    def kinds(self) -> list[str]:
        return [kind for kind, each in self.held.items() for _ in each]

    @cached_property
    def curve(self) -> Knots:
        return fit_curve(join(self.fitted))

    @cached_property
    def predicted(self) -> list[np.ndarray]:
        return [price_as_predicted(context) for context in self.contexts]

    @cached_property
    def by_score(self) -> list[np.ndarray]:
        prices = ScorePrices(join(self.fitted))
        return [prices.of(context) for context in self.contexts]

    @cached_property
    def by_answer(self) -> list[np.ndarray]:
        return [make_falling(context.worth) for context in self.contexts]

    def by_curves(self, curves: Mapping[str, Knots], names: Sequence[str], share: float) -> Counts:
        """The curve of that name for each context."""
        return [count_by_curve(curves[name], c, share) for name, c in zip(names, self.contexts, strict=True)]

    def by_curve(self, curve: Knots, share: float) -> Counts:
        return self.by_curves({"": curve}, [""] * len(self.contexts), share)

    def by_prompt(self, prices: Sequence[np.ndarray], share: float) -> Counts:
        """Every prompt keeps exactly its budget."""
        pairs = zip(prices, self.contexts, strict=True)
        return [share_out([price], find_total(context, share))[0] for price, context in pairs]

    def in_the_mean(self, prices: Sequence[np.ndarray], share: float) -> Counts:
        """One threshold for all prompts, which keep their budget together."""
        return share_out(prices, sum(find_total(context, share) for context in self.contexts))


def join(contexts: Mapping[str, Contexts]) -> list[Ranked]:
    return [context for each in contexts.values() for context in each]


def choose_curves(material: Material, group_of: Mapping[str, str]) -> tuple[dict[str, Knots], list[str], list[str]]:
    """A curve for each group of kinds; which group each held-out context is taken for, and which it is of."""
    names = dict.fromkeys(group_of.values())
    groups = {n: join({k: each for k, each in material.fitted.items() if group_of[k] == n}) for n in names}
    chooser = Chooser(groups)
    chosen = [chooser.choose(context) for context in material.contexts]
    return {n: fit_curve(each) for n, each in groups.items()}, chosen, [group_of[kind] for kind in material.kinds]


def find_ways(material: Material, shipped: CurveAllocator | None) -> dict[str, Callable[[float], Counts]]:
    """Way -> share -> the counts of the held-out contexts."""
    m = material
    two, four = choose_curves(m, ASKS), choose_curves(m, {kind: kind for kind in m.fitted})
    best, powered = fit_curve(m.contexts), fit_curve(join(m.fitted), power=1.5)
    own = {kind: fit_curve(each) for kind, each in m.held.items()}
    ways: dict[str, Callable[[float], Counts]] = {}
    if shipped is not None:
        ways["the shipped curve (`lukv_plus`)"] = lambda share: [
            shipped.counts_at(Budget(share=share), c.worth.shape[-1]) for c in m.contexts
        ]
    return ways | {
        STATIC: lambda share: m.by_curve(m.curve, share),
        "one curve, of U^1.5 as shipped": lambda share: m.by_curve(powered, share),
        "threshold on predicted utility, exact in the mean": lambda share: m.in_the_mean(m.predicted, share),
        "the layer's share of that curve, by predicted utility": lambda share: [
            share_out_layers(c, count_by_curve(m.curve, c, share)) for c in m.contexts
        ],
        "the prompt's budget, by predicted utility": lambda share: m.by_prompt(m.predicted, share),
        "threshold on what a score was worth, exact in the mean": lambda share: m.in_the_mean(m.by_score, share),
        "the prompt's budget, by what a score was worth": lambda share: m.by_prompt(m.by_score, share),
        "two curves, chosen by the text's profile": lambda share: m.by_curves(two[0], two[1], share),
        "four curves, chosen by the text's profile": lambda share: m.by_curves(four[0], four[1], share),
        "told: two curves, asked or going on": lambda share: m.by_curves(two[0], two[2], share),
        "told: four curves, one of each kind": lambda share: m.by_curves(four[0], four[2], share),
        "bound: the best static budgets of all": lambda share: m.by_curve(best, share),
        "bound: the best static budgets of each kind": lambda share: m.by_curves(own, m.kinds, share),
        "bound: the best budgets of each prompt": lambda share: m.by_prompt(m.by_answer, share),
        "bound: the same, one threshold for all": lambda share: m.in_the_mean(m.by_answer, share),
    }


def rank_perfectly(contexts: Mapping[str, Contexts]) -> dict[str, list[Ranked]]:
    """The same contexts in the order of their utility."""
    return {kind: [Ranked(c.scores, -np.sort(-c.worth, axis=-1)) for c in each] for kind, each in contexts.items()}


def find_losses(material: Material, counts: Counts) -> dict[str, dict[str, float]]:
    """Kind -> number of the context -> the share of its utility that is lost."""
    losses: dict[str, dict[str, float]] = {kind: {} for kind in material.held}
    for number, (kind, context, n) in enumerate(zip(material.kinds, material.contexts, counts, strict=True)):
        losses[kind][f"{number:04}"] = find_lost(context, n)
    return losses


def study(material: Material, shipped: CurveAllocator | None = None) -> dict[str, Any]:
    """Way -> share -> {lost, kinds, difference, low, high, p, kept}. lost and kinds 0..1: the mean, and by kind; the
    paired difference is that from STATIC; kept: the least and the largest share that a context keeps."""
    perfect = Material(rank_perfectly(material.fitted), rank_perfectly(material.held))
    ways = {way: (material, count) for way, count in find_ways(material, shipped).items()}
    bounds: dict[str, Callable[[float], Counts]] = {
        "bound: the oracle's ranking, one curve": lambda share: perfect.by_curve(perfect.curve, share),
        "bound: the same, the best budgets of each prompt": lambda share: perfect.by_prompt(perfect.by_answer, share),
    }
    ways |= {way: (perfect, count) for way, count in bounds.items()}
    found: dict[str, Any] = {way: {} for way in ways}
    for share in SHARES:
        counts = {way: count(share) for way, (_, count) in ways.items()}
        lost = {way: find_losses(of, counts[way]) for way, (of, _) in ways.items()}
        differences = compare_pairs([(scores, lost[STATIC], STATIC) for scores in lost.values()])
        for (way, scores), difference in zip(lost.items(), differences, strict=True):
            kinds = {kind: float(np.mean([*each.values()])) for kind, each in scores.items()}
            kept = [n.sum() / c.worth.size for n, c in zip(counts[way], material.contexts, strict=True)]
            mean = difference["mean"]
            found[way][f"{share:g}"] = {
                "lost": float(np.mean([*kinds.values()])),
                "kinds": kinds,
                **{"difference": mean.mean, "low": mean.low, "high": mean.high, "p": mean.p},
                "kept": [float(min(kept)), float(max(kept))],
            }
    return found


def count_right(material: Material) -> dict[str, float]:
    """How often the choosers are right."""
    groups = {"two": ASKS, "four": {kind: kind for kind in material.fitted}}
    found = {name: choose_curves(material, group_of)[1:] for name, group_of in groups.items()}
    return {name: float(np.mean(np.array(chosen) == np.array(true))) for name, (chosen, true) in found.items()}


def describe(found: Mapping[str, Any]) -> list[str]:
    """The table as markdown."""
    rows = markdown_head(["budgets", *(f"kept {share:.0%}" for share in SHARES)])
    for way, by_share in found.items():
        cells = []
        for at in by_share.values():
            apart = ", {:+.1f} ({:+.1f} to {:+.1f})".format(*(100 * at[x] for x in ("difference", "low", "high")))
            cells.append(f"{100 * at['lost']:.1f}" + ("" if way == STATIC else apart))
        rows.append(markdown_row([way, *cells]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-q4", help="of conf/")
    parser.add_argument("--sources", type=Path, required=True, help="folder with RULER's PaulGrahamEssays.json")
    parser.add_argument("--dialogue", type=Path, required=True, help="folder with LongBench's samsum and qmsum.jsonl")
    parser.add_argument("--fit", type=int, default=5, help="contexts of each kind to fit to")
    parser.add_argument("--held", type=int, default=7, help="contexts of each kind to measure on, at least 6")
    parser.add_argument(
        "--store", type=Path, default=Path("runs/text-budgets"), help="where measured contexts are kept"
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    loaded = load(**{k: v for k, v in fill(read_option("model", asked.model), {}).items() if k != "tables"})
    plus = method("lukv_plus", budget=SHARES[0], model=loaded)
    assert plus is not None
    assert isinstance(plus.allocator, CurveAllocator)
    kinds = list_kinds(asked.sources, asked.dialogue)
    with torch.inference_mode():
        contexts = measure(loaded, plus.scorer, plus.protection, kinds, asked.fit + asked.held, asked.store)
    parts = slice(asked.fit), slice(asked.fit, None)
    material = Material(*({kind: each[part] for kind, each in contexts.items()} for part in parts))
    found, right = study(material, plus.allocator), count_right(material)
    about = {"model": asked.model, "fit": asked.fit, "held": asked.held, "chosen right": right}
    path = DOCS / "data" / f"{asked.model}-text-budgets.json"
    write_atomically(path, json.dumps({"about": about, "budgets": found}, indent=1).encode())
    print("\n".join(describe(found)))
    print("choosers that were right:", right)


if __name__ == "__main__":
    main()
