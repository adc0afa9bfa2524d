"""Tables of documents: what docs/data/tables.yaml asks for, made of the cells in docs/data/*.csv, as markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from evals.looks import find_name
from evals.report.data import MEAN, Cell
from evals.report.runs import ALL, title_budget
from evals.report.tables import markdown_head, markdown_row
from evals.text import percent

FULL = "full cache"


@dataclass(frozen=True)
class Table:
    """A table of one data file. rows: methods by their label; names: what they are called, before evals.looks.

    budgets   the columns of a table of means, a row for each method: shares kept, or "0.2 bytes"
    budget    instead of budgets: a table of tasks at this budget, a column for each method
    decodings with budget: a table of means, a row for each method and a column for each of these, which say what is
              evicted while answering, as labels do (size64-every16)
    where     column -> value, for a file with more than one benchmark or protocol
    """

    data: str
    rows: Sequence[str]
    names: Mapping[str, str]
    budgets: Sequence[float | str] = ()
    budget: float | None = None
    decodings: Sequence[str] = ()
    where: Mapping[str, str] = field(default_factory=dict)

    def markdown(self, cells: Iterable[Cell]) -> str:
        """The table with a line below it that says what it is of. Raises ValueError if it cannot be made of `cells`."""
        chosen = Chosen([c for c in cells if all(getattr(c, k) == v for k, v in self.where.items())], self)
        of_tasks = self.budget is not None and not self.decodings
        lines = chosen.tasks(f"{self.budget:g}") if of_tasks else chosen.means()
        return "\n".join([*lines, "", chosen.caption()])

    def name(self, label: str) -> str:
        return find_name(label, self.names)


class Chosen:
    """The cells of one table."""

    def __init__(self, cells: Sequence[Cell], table: Table) -> None:
        self.table = table
        budgets = [b if isinstance(b, str) else f"{b:g}" for b in table.budgets] or [f"{table.budget:g}"]
        self.ends = [f" {decoding}" for decoding in table.decodings] or [""]
        labels = {method + end for method in table.rows for end in self.ends}
        shown = [c for c in cells if c.method in labels and c.budget in budgets]
        if not shown:
            raise ValueError(f"docs/data/{table.data}.csv has none of the table's cells")
        kinds = {(c.model, c.benchmark, c.protocol) for c in shown}
        if len(kinds) > 1:
            raise ValueError(f"a table of {sorted(kinds)}: choose one by `where`")
        (self.kind,) = kinds
        self.budgets = [b for b in budgets if any(c.budget == b for c in shown)]
        self.at = {(c.method, c.budget, c.task): c for c in shown}
        self.sizes = count_samples([*shown, *(c for c in cells if c.budget == ALL)])
        used = {frozenset(self.sizes[c.run_id].items()) for c in shown}
        self.full = [
            c
            for c in cells
            if c.budget == ALL
            and (c.model, c.benchmark, c.protocol) == self.kind
            and frozenset(self.sizes[c.run_id].items()) in used
        ]
        if len({c.run_id for c in self.full}) != len(used):
            raise ValueError(f"docs/data/{table.data}.csv lacks a full cache on the samples of the table")

    @cached_property
    def rows(self) -> list[str]:
        """The methods of the table that there are cells of, in the table's order."""
        return [m for m in self.table.rows if any(method == m + end for method, _, _ in self.at for end in self.ends)]

    @cached_property
    def alike(self) -> bool:
        """Whether all cells are of the same samples: the same tasks, as many of each."""
        return len({c.run_id for c in self.full}) == 1

    def means(self) -> list[str]:
        """A row for each method and a column for each budget, or for each of what evicts while answering."""
        places = [(end, budget) for budget in self.budgets for end in self.ends]
        full = [
            markdown_row([FULL, *[self.show(c)] * len(places)])
            for c in sorted(self.full, key=lambda c: c.n)
            if c.task == MEAN
        ]
        columns = [[self.at.get((method + end, budget, MEAN)) for method in self.rows] for end, budget in places]
        lines = zip(*(self.show_best(column) for column in columns), strict=True)
        head = markdown_head(["method", *(end.strip() or title_budget(b) for end, b in places)])
        rows = [markdown_row([self.table.name(m), *line]) for m, line in zip(self.rows, lines, strict=True)]
        return [*head, *full, *rows]

    def tasks(self, budget: str) -> list[str]:
        """A row for each task and one for their mean, a column for each method. The full cache comes first."""
        if not self.alike:
            raise ValueError("a table of tasks has cells of different samples: give it rows that have the same")
        head = markdown_head(["task", FULL, *map(self.table.name, self.rows)])
        rows = []
        for full in sorted(self.full, key=lambda c: c.task == MEAN):
            line = self.show_best([self.at[method, budget, full.task] for method in self.rows])
            rows.append(markdown_row(["mean" if full.task == MEAN else full.task, self.show(full), *line]))
        return [*head, *rows]

    def show_best(self, cells: Sequence[Cell | None]) -> list[str]:
        """The cells, and the best in bold where all are of the same samples and more than one is there."""
        there = [c for c in cells if c is not None]
        best = max((c.score for c in there), default=0)
        alike = len({frozenset(self.sizes[c.run_id].items()) for c in there}) == 1 and len(there) > 1
        return ["" if c is None else self.show(c, alike and c.score == best > 0) for c in cells]

    def show(self, cell: Cell, bold: bool = False) -> str:
        """Score and interval in per cent, and n where it is not the same in all cells."""
        score = f"**{percent(cell.score)}**" if bold else percent(cell.score)
        n = "" if self.alike else f", n {cell.n}"
        return f"{score} ({percent(cell.low)}-{percent(cell.high)}{n})"

    def caption(self) -> str:
        """What the table is of."""
        model, benchmark, protocol = self.kind
        counts = {n for run in {c.run_id for c in self.full} for n in self.sizes[run].values()}
        tasks = {task for c in self.full for task in self.sizes[c.run_id]}
        n, total = ("/".join(map(str, sorted(ns))) for ns in (counts, {c.n for c in self.full if c.task == MEAN}))
        at = "" if self.table.budget is None else f", kept {100 * self.table.budget:g}%"
        said = (
            f"{model}, {benchmark}, {protocol}{at}: {len(tasks)} tasks, {n} samples of each (n = {total}); mean "
            f"of tasks, per cent, 95% interval. Every cell's command and commit: `docs/data/{self.table.data}.csv`."
        )
        missing = [self.table.name(m) for m in self.table.rows if m not in self.rows]
        return said + (f" Not measured yet: {', '.join(missing)}." if missing else "")


def count_samples(cells: Iterable[Cell]) -> dict[str, dict[str, int]]:
    """Run id -> task -> n."""
    sizes: dict[str, dict[str, int]] = {}
    for cell in cells:
        if cell.task != MEAN:
            sizes.setdefault(cell.run_id, {})[cell.task] = cell.n
    return sizes
