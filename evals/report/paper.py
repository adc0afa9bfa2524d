"""Tables that go into a paper as they are: one row a method, one column a budget (or model, benchmark, protocol, seed).

Runs that differ in their seed alone are one cell: mean and standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from evals.differences import Scores, compare_pairs
from evals.looks import find_name
from evals.report.captions import describe_runs
from evals.report.runs import Result, budget_label, is_share, keeps_all, label, read_scores, title_budget
from evals.report.select import KEYS
from evals.report.tables import SIGNIFICANT, markdown_head, markdown_row
from evals.stats import holm
from evals.text import percent

GROUP_BY = tuple(key for key in KEYS if key != "method")
"""What the columns of a table may be."""

FULL = "full cache"


@dataclass(frozen=True)
class Score:
    """Scores in 0..1. One run has an interval, runs of several seeds have a standard deviation instead.

    p: of the difference from the method that the table compares with, None where there is none.
    """

    mean: float
    ci95: tuple[float, float] | None = None
    sd: float = 0.0
    p: float | None = None
    rank: int = 0  # 1: best of its column, 2: second

    def spread(self, interval: str, deviation: str) -> str:
        """What stands beside the score: the interval, or the deviation, in this form."""
        return deviation.format(percent(self.sd)) if self.ci95 is None else interval.format(*map(percent, self.ci95))

    @property
    def star(self) -> bool:
        return self.p is not None and self.p < SIGNIFICANT


@dataclass(frozen=True)
class PaperTable:
    """rows: label -> column -> score; the full cache comes first, then the best. about: what the runs are."""

    about: str
    by: str
    columns: Sequence[str]
    rows: Mapping[str, Mapping[str, Score]]
    against: str | None

    @property
    def heads(self) -> list[str]:
        return [title_budget(c) if self.by == "budget" else c for c in self.columns]

    def caption(self) -> str:
        scores = [score for row in self.rows.values() for score in row.values()]
        spread = "95% interval in brackets"
        if any(score.ci95 is None for score in scores):
            spread = "mean and standard deviation over seeds, or the 95% interval of one seed in brackets"
        said = [f"Mean score of tasks in per cent by {self.by}; {spread}.", f"{self.about}."]
        if any(score.rank for score in scores):
            said.append("Bold: best of its column; underlined: second.")
        if any(score.p is not None for score in scores):
            said.append(
                f"*: differs from {find_name(str(self.against))} on the same samples (paired bootstrap, "
                f"p < {SIGNIFICANT:g}, corrected for the number of cells by Holm)."
            )
        return " ".join(said)

    def markdown(self) -> str:
        rows = [
            markdown_row([find_name(name), *("" if s is None else format_markdown(s) for s in self.line(name))])
            for name in self.rows
        ]
        return "\n".join([*markdown_head(["method", *self.heads]), *rows, "", self.caption(), ""])

    def latex(self, name: str) -> str:
        """The table with the commands of booktabs, to be referred to by its name."""
        cells = {name: ["" if s is None else format_latex(s) for s in self.line(name)] for name in self.rows}
        rows = [" & ".join([escape_latex(find_name(name)), *line]) + r" \\" for name, line in cells.items()]
        if FULL in self.rows and len(rows) > 1:
            rows.insert(1, r"\midrule")
        head = " & ".join(["Method", *map(escape_latex, self.heads)]) + r" \\"
        return "\n".join(
            [
                *(r"\begin{table}[t]", r"\centering", rf"\caption{{{escape_latex(self.caption())}}}"),
                *(rf"\label{{{name}}}", rf"\begin{{tabular}}{{l{'r' * len(self.columns)}}}", r"\toprule", head),
                *(r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""),
            ]
        )

    def line(self, name: str) -> list[Score | None]:
        return [self.rows[name].get(column) for column in self.columns]


def make_tables(
    groups: Mapping[str, Sequence[Result]], by: str, against: Mapping[str, str | None], runs: Path
) -> list[PaperTable]:
    """The tables of all experiments, with one column for each value of `by` (of GROUP_BY).

    against: experiment -> the label that its others are compared with.
    """
    tables: dict[tuple[str, ...], list[Result]] = {}
    results = [r for group in groups.values() for r in group]
    for r in results:
        if not keeps_all(r):
            tables.setdefault(table_key(r, by), []).append(r)
    for r in results:
        for key, members in tables.items():
            if keeps_all(r) and any(table_key(r, by, budget_label(m)) == key for m in members):
                members.append(r)
    return [make_table(members, by, against, runs) for members in tables.values()]


def table_key(r: Result, by: str, budget: str | None = None) -> tuple[str, ...]:
    """What the runs of one table have in common: everything that decides a run but the method, `by` and the seed."""
    common = {key: read(r) for key, read in KEYS.items() if key not in (by, "seed", "method")}
    if budget is not None and "budget" in common:
        common["budget"] = budget
    varied = "benchmark." if by == "protocol" else f"{by}."
    _, _, *settings = r["experiment"].split("__")
    shared = [s for s in settings if s != f"s{r['config']['seed']}" and not s.startswith(varied)]
    return *common.values(), *shared, *(() if by == "benchmark" else sorted(r["tasks"]))


def make_table(members: Sequence[Result], by: str, against: Mapping[str, str | None], runs: Path) -> PaperTable:
    evicting = [r for r in members if not keeps_all(r)]
    columns = sorted({KEYS[by](r) for r in evicting}, key=sort_value)
    cells: dict[tuple[str, str], list[Result]] = {}
    for r in members:
        for column in columns if keeps_all(r) and by == "budget" else [KEYS[by](r)]:
            cells.setdefault((FULL if keeps_all(r) else label(r), column), []).append(r)
    scores = {key: pool(found) for key, found in cells.items()}
    other = next((name for r in evicting if (name := against.get(r["experiment"]))), None)
    if other is not None:
        scores = with_p(scores, {key: pool_samples(found, runs) for key, found in cells.items()}, other)
    for column in columns:
        scores = with_ranks(scores, column)
    names = sorted({name for name, _ in cells}, key=lambda name: (name != FULL, -mean_of(scores, name), name))
    rows = {name: {column: s for (n, column), s in scores.items() if n == name} for name in names}
    about = describe_runs(evicting)
    if by != "budget":
        about += f", budget {budget_label(evicting[0])}"
    return PaperTable(about, by, columns, rows, other)


def pool(found: Sequence[Result]) -> Score:
    """One cell. More than one result are those of several seeds."""
    values = [r["score"] for r in found]
    if len(values) == 1:
        low, high = found[0]["ci95"]
        return Score(values[0], (low, high))
    if len({r["config"]["seed"] for r in found}) < len(found):
        raise ValueError(
            f"{' and '.join(r['run_id'] for r in found)} would fill one cell: choose runs with --select, or another "
            f"--group-by"
        )
    return Score(float(np.mean(values)), sd=float(np.std(values, ddof=1)))


def pool_samples(found: Sequence[Result], runs: Path) -> Scores:
    """The mean score of each sample over the seeds."""
    each = [read_scores(runs / r["run_id"]) for r in found]
    return {
        task: {i: float(np.mean([scores[task][i] for scores in each])) for i in ids}
        for task, ids in each[0].items()
        if all(scores.get(task, {}).keys() == ids.keys() for scores in each)
    }


def with_p(
    scores: Mapping[tuple[str, str], Score], samples: Mapping[tuple[str, str], Scores], other: str
) -> dict[tuple[str, str], Score]:
    """The scores with the p value of each one's difference from the method `other` in its column."""
    keys = [key for key in scores if key[0] not in (FULL, other) and (other, key[1]) in scores]
    found = compare_pairs([(samples[key], samples[other, key[1]], other) for key in keys])
    compared = [(key, differences["mean"].p) for key, differences in zip(keys, found, strict=True) if differences]
    corrected = holm([p for _, p in compared])
    return {**scores, **{key: replace(scores[key], p=p) for (key, _), p in zip(compared, corrected, strict=True)}}


def with_ranks(scores: Mapping[tuple[str, str], Score], column: str) -> dict[tuple[str, str], Score]:
    """The best and the second of a column are marked, where there are more than one and more than zero."""
    own = {key: score for key, score in scores.items() if key[1] == column and key[0] != FULL}
    levels = sorted({score.mean for score in own.values() if score.mean > 0}, reverse=True)[:2]
    ranks = {key: levels.index(s.mean) + 1 for key, s in own.items() if s.mean in levels and len(own) > 1}
    return {**scores, **{key: replace(scores[key], rank=rank) for key, rank in ranks.items()}}


def mean_of(scores: Mapping[tuple[str, str], Score], name: str) -> float:
    return float(np.mean([score.mean for (n, _), score in scores.items() if n == name]))


def sort_value(text: str) -> tuple[bool, float, str]:
    """Numbers by size ("128 tokens" among them), then words."""
    first = text.split()[0]
    return (False, float(first), "") if is_share(first) else (True, 0.0, text)


def format_markdown(score: Score) -> str:
    text = {1: "**{}**", 2: "<u>{}</u>"}.get(score.rank, "{}").format(percent(score.mean))
    return f"{text}{chr(92) + '*' if score.star else ''} {score.spread('({}-{})', '± {}')}"


def format_latex(score: Score) -> str:
    command = {1: r"\textbf{%s}", 2: r"\underline{%s}"}.get(score.rank, "%s")
    spread = score.spread("[{}, {}]", r"$\pm$ {}")
    return f"{command % percent(score.mean)}{'$^{*}$' if score.star else ''} {{\\scriptsize {spread}}}"


LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    **{"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$"},
    **{"<": r"$<$", ">": r"$>$"},
}


def escape_latex(text: str) -> str:
    """Any text as LaTeX sets it. A line break becomes a space."""
    return "".join(LATEX.get(c, c) for c in " ".join(text.split()))


def write_tables(tables: Sequence[PaperTable], out: Path) -> None:
    """tables.tex and tables.md."""
    latex = [table.latex(f"tab:scores-{number}") for number, table in enumerate(tables, 1)]
    (out / "tables.tex").write_text("% \\usepackage{booktabs}\n" + "\n".join(latex), encoding="utf-8")
    (out / "tables.md").write_text("\n".join(table.markdown() for table in tables), encoding="utf-8")
