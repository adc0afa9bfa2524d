"""Tables of scorers and allocators, as markdown: what docs/data/tables.yaml asks for under `pairs`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from evals.looks import find_allocator, find_name
from evals.report.data import Cell
from evals.report.runs import title_budget
from evals.report.tables import markdown_head, markdown_row
from evals.text import percent
from lukv.names import suggest_nearest
from scripts.pairs import EQUAL, Pairs, correlate, find_pairs, interval, split_variance

LUKV = "budget_table"
TINY = 1e-9
"""What a difference of equal scores may be in float64."""

COSTS = re.compile(r"^<!-- scorers: .*?^\| scorer \| added, ms .*?$(.*?)^<!-- end of scorers", re.MULTILINE | re.DOTALL)
"""The part of docs/benchmarks.md with what each scorer adds to a prefill of the embedded model."""


@dataclass(frozen=True)
class PairTables:
    """The tables of one data file.

    budgets      shares kept; the first one is that of tables of one budget
    allocators   the columns; `uniform` is among them
    bounds       scorers that are no methods: shown, and left out of every statistic
    fidelity     docs/data/NAME.json, made by scripts/studies/fidelity.py
    """

    data: str
    title: str
    budgets: Sequence[float]
    allocators: Sequence[str]
    bounds: Sequence[str]
    fidelity: str
    names: Mapping[str, str]
    folder: Path
    cells: Sequence[Cell]

    @cached_property
    def pairs(self) -> dict[float, Pairs]:
        return {b: find_pairs(self.cells, b, self.allocators, self.data) for b in self.budgets}

    @cached_property
    def ranked(self) -> dict[float, Pairs]:
        """The same without the bounds."""
        return {b: pairs.without(self.bounds) for b, pairs in self.pairs.items()}

    def markdown(self, show: str, budget: float | None = None) -> str:
        """One table, with a line below it that says what it is of. Raises ValueError for a table that there is not."""
        of_one: dict[str, Callable[[float], list[str]]] = {
            "scores": self.list_scores,
            "allocators": self.list_allocators,
            "scorers": self.list_scorers,
        }
        of_all = {"variance": self.list_variance, "fidelity": self.list_correlations}
        if show in of_all:
            return "\n".join([*of_all[show](), "", self.caption() + self.say_contexts(show)])
        if show not in of_one:
            raise ValueError(f"no table `show: {show}`.{suggest_nearest(show, [*of_one, *of_all])}")
        budget = self.budgets[0] if budget is None else budget
        return "\n".join([*of_one[show](budget), "", self.caption(budget) + self.say_contexts(show)])

    def caption(self, budget: float | None = None) -> str:
        """What a table is of."""
        of = list(self.pairs.values()) if budget is None else [self.pairs[budget]]
        one, at = of[0], "" if budget is None else f", {title_budget(f'{budget:g}')}"
        of_each, total, full = (
            list_once(values)
            for values in ([n for p in of for n in p.n], [p.total for p in of], [percent(p.full.score) for p in of])
        )
        return (
            f"{one.full.model}, {one.full.benchmark}, {one.full.protocol}{at}: {len(one.tasks)} tasks, {of_each} "
            f"samples of each (n = {total}); mean of tasks, per cent; full cache {full}. "
            f"Every cell: `docs/data/{self.data}.csv`."
        )

    def say_contexts(self, show: str) -> str:
        """Of a table with fidelity, what that was measured on."""
        if show not in ("scorers", "fidelity"):
            return ""
        return f" Captured: {self.measured['facts']['contexts']} other contexts, `docs/data/{self.fidelity}.json`."

    def list_scores(self, budget: float) -> list[str]:
        """Score and interval of every pair; bold: the best of its row."""
        pairs = self.pairs[budget]
        rows = []
        for scorer in pairs.scorers:
            line = [pairs.means[scorer, a] for a in pairs.allocators]
            best = max(c.score for c in line)
            rows.append(markdown_row([self.name(scorer), *(show(c, c.score == best > 0) for c in line)]))
        return [*markdown_head(["scorer", *map(find_allocator, pairs.allocators)]), *rows]

    def list_variance(self) -> list[str]:
        """What of the scores' variance lies between scorers, between allocators, and in neither alone."""
        rows = []
        for budget, pairs in self.ranked.items():
            shares = split_variance(pairs.scores.mean(0))
            low, high = interval(split_variance(pairs.drawn))
            texts = [f"{100 * s:.0f}% ({100 * a:.0f}-{100 * b:.0f})" for s, a, b in zip(shares, low, high, strict=True)]
            rows.append(markdown_row([title_budget(f"{budget:g}"), *texts]))
        return [*markdown_head(["budget", "which ranking", "which budgets", "which pair of them"]), *rows]

    def list_allocators(self, budget: float) -> list[str]:
        """Each allocator beside equal budgets, under all scorers: a gain counts where its interval is above 0."""
        pairs, rows = self.ranked[budget], []
        for i, allocator in enumerate(pairs.allocators):
            line = [find_allocator(allocator), percent(pairs.scores[..., i].mean())]
            if allocator == EQUAL:
                rows.append(markdown_row([*line, *[""] * 5]))
                continue
            gain, low, high = pairs.gains(allocator)
            ends = [f"{self.name(pairs.scorers[k])} {points(gain[k])}" for k in (gain.argmax(), gain.argmin())]
            counts = [f"{(low > TINY).sum()} of {len(gain)}", f"{(high < -TINY).sum()} of {len(gain)}"]
            rows.append(markdown_row([*line, points(gain.mean()), *counts, *ends]))
        head = ["budgets", "mean", "minus equal", "better under", "worse under", "helped most", "helped least"]
        return [*markdown_head(head), *rows]

    def list_scorers(self, budget: float) -> list[str]:
        """Each scorer: its fidelity, what equal budgets and LU-KV's give it, its best pair, and what it costs."""
        pairs, costs = self.pairs[budget], read_costs(self.folder / "benchmarks.md")
        gain, low, high = pairs.gains(LUKV)
        rows = []
        for i, scorer in enumerate(pairs.scorers):
            means = pairs.scores[:, i].mean(0)
            at = dict(zip(pairs.allocators, means, strict=True))
            captured = self.captured.get(scorer)
            gained = f"{points(gain[i])} ({points(low[i])} to {points(high[i])})"
            best = f"{find_allocator(pairs.allocators[means.argmax()])}, {percent(means.max())}"
            share = "-" if captured is None else f"{captured:.2f}"
            scores = percent(at[EQUAL]), percent(at[LUKV]), gained, best
            rows.append(markdown_row([self.name(scorer), share, *scores, costs.get(scorer, "-")]))
        head = ["scorer", "captured", "equal budgets", "LU-KV's", "difference", "best budgets", "added to a prefill"]
        return [*markdown_head(head), *rows]

    def list_correlations(self) -> list[str]:
        """Over the scorers: does the one that captures more utility score more?"""
        rows = []
        for i, allocator in enumerate(self.allocators):
            texts = []
            for pairs in self.ranked.values():
                known = [k for k, scorer in enumerate(pairs.scorers) if scorer in self.captured]
                fidelity = np.array([self.captured[pairs.scorers[k]] for k in known])
                value, low, high = correlate(fidelity, pairs.scores[:, known, i].mean(0))
                texts.append(f"{value:.2f} ({low:.2f} to {high:.2f})")
            rows.append(markdown_row([find_allocator(allocator), *texts]))
        return [*markdown_head(["budgets", *(title_budget(f"{b:g}") for b in self.budgets)]), *rows]

    @cached_property
    def measured(self) -> dict[str, Any]:
        """What scripts/studies/fidelity.py wrote. Raises ValueError, with the command, where there is no such file."""
        path = self.folder / "data" / f"{self.fidelity}.json"
        if not path.is_file():
            raise ValueError(
                f"docs/data/{path.name} is not there: python -m scripts.studies.fidelity --experiment NAME"
            )
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    @property
    def captured(self) -> dict[str, float]:
        """Of each scorer that was measured: the share of the best fifth's utility that its first fifth holds, the mean
        over heads."""
        return {name: float(np.mean(heads)) for name, heads in self.measured["captured"].items()}

    def name(self, scorer: str) -> str:
        return find_name(scorer, self.names)

    def plan(self) -> dict[str, Any]:
        """What is drawn: {panels, rows, columns, title} as evals.pair_plots.draw_pairs takes them. Rows are in the
        order of the first budget's."""
        first = self.pairs[self.budgets[0]]
        panels = {}
        for budget, pairs in self.pairs.items():
            order = [pairs.scorers.index(scorer) for scorer in first.scorers]
            panels[title_budget(f"{budget:g}")] = pairs.scores.mean(0)[order].tolist()
        rows, columns = [self.name(s) for s in first.scorers], [find_allocator(a) for a in first.allocators]
        counts = list_once([pairs.total for pairs in self.pairs.values()])
        full = list_once([percent(pairs.full.score) for pairs in self.pairs.values()])
        title = f"{self.title}, n = {counts} a square; full cache {full}"
        return {"panels": panels, "rows": rows, "columns": columns, "title": title}


def list_once(values: Sequence[object]) -> str:
    """
    >>> list_once([2, 1, 2])
    '2/1'
    """
    return "/".join(dict.fromkeys(map(str, values)))


def points(difference: float) -> str:
    """A difference of scores (0..1) in per cent, with its sign.

    >>> points(0.084), points(-1e-17)
    ('+8.4', '+0.0')
    """
    return f"{round(100 * float(difference), 1) + 0:+.1f}"


def show(cell: Cell, best: bool) -> str:
    """Score and interval in per cent."""
    score = f"**{percent(cell.score)}**" if best else percent(cell.score)
    return f"{score} ({percent(cell.low)}-{percent(cell.high)})"


def read_costs(page: Path) -> dict[str, str]:
    """Scorer -> what it adds to a prefill of the embedded model, in per cent of it, as docs/benchmarks.md says."""
    found = COSTS.search(page.read_text(encoding="utf-8"))
    if found is None:
        raise ValueError(f"{page.name} does not say what each scorer adds: python -m benchmarks.scorers --record")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines() if line.startswith("| ")
    ]
    return {row[0]: row[2] for row in rows}
