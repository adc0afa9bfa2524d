"""Write the tables and figures of README.md and docs/*.md from docs/data, as docs/data/tables.yaml says.

    python -m scripts.docs            # what `make docs` runs
    python -m scripts.docs --check    # write nothing; exit code 1 if a table or figure is not what its data say

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. A figure or a heat map is a file in docs/figures, of
a length and a depth (heat_maps), or of scorers and allocators (pairs).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from evals.grid import Grid, arrange, count_square
from evals.looks import find_look, find_name, find_scorer
from evals.report.data import MEAN, Cell, read_data, read_squares
from evals.report.runs import ALL
from lukv.names import suggest_nearest
from scripts.doc_tables import Table
from scripts.pair_tables import PairTables

ROOT = Path(__file__).parents[1]
FORMATS = (".png", ".pdf")
"""Figures are in the pages as PNG and beside them as PDF, for papers."""
Draw = Callable[[Mapping[str, Any], Path], None]
BEGIN = re.compile(r"^<!-- table: ", re.MULTILINE)
BLOCK = re.compile(r"^(<!-- table: (\S+) -->\n)(.*?)^(<!-- end -->)$", re.MULTILINE | re.DOTALL)


class Documents:
    """The repository's pages, with the tables and figures that docs/data/tables.yaml describes."""

    def __init__(self, root: Path = ROOT) -> None:
        self.root = root
        self.asked = yaml.safe_load((root / "docs/data/tables.yaml").read_text(encoding="utf-8"))

    @cached_property
    def pages(self) -> list[Path]:
        return [self.root / "README.md", *sorted((self.root / "docs").glob("*.md"))]

    def read_cells(self, name: str) -> list[Cell]:
        return read_data(self.find_data(name))

    def find_data(self, name: str) -> Path:
        """Raises ValueError, with the command that makes the file, where there is none."""
        path = self.root / "docs/data" / f"{name}.csv"
        if not path.is_file():
            made_by = f"python report.py data --name {name.removesuffix('-grid')}"
            raise ValueError(f"docs/data/{name}.csv is not there: {made_by}")
        return path

    def make_table(self, name: str) -> str:
        tables = self.asked["tables"]
        if name not in tables:
            raise ValueError(f"no table {name} in docs/data/tables.yaml.{suggest_nearest(name, list(tables))}")
        if "pairs" in tables[name]:
            chosen = dict(tables[name])
            return self.read_pairs(chosen.pop("pairs")).markdown(**chosen)
        table = Table(names=self.asked["names"], **tables[name])
        return table.markdown(self.read_cells(table.data))

    def make_page(self, path: Path) -> str:
        """The page with its tables made anew. Raises ValueError for a table that cannot be made."""
        text = path.read_text(encoding="utf-8")
        if len(BEGIN.findall(text)) != len(BLOCK.findall(text)):
            raise ValueError(
                f"{path.name}: a table's markers are <!-- table: NAME --> and <!-- end -->, each on a line"
            )
        return BLOCK.sub(lambda found: f"{found[1]}\n{self.make_table(found[2])}\n\n{found[4]}", text)

    def plan_figure(self, name: str) -> dict[str, Any]:
        """What is drawn: {x, lines, full, title, names} as evals.score_plots.draw_scores takes them. `x: bytes` in the
        description of a figure draws scores against bytes."""
        asked = self.asked["figures"][name]
        by_bytes = asked.get("x") == "bytes"
        cells = [c for c in self.read_cells(asked["data"]) if c.task == MEAN]
        full = max((c for c in cells if c.budget == ALL), key=lambda c: c.n)
        lines = {
            label: [
                {**as_row(c), **({"cache_share": c.bytes} if by_bytes else {"kept_share": float(c.budget)})}
                for c in cells
                if c.method == label and c.budget != ALL
            ]
            for label in asked["rows"]
        }
        lines = {label: rows for label, rows in lines.items() if rows}
        counts = sorted({c.n for c in cells})
        title = f"{asked['title']}, n = {'/'.join(map(str, counts))} a point"
        names = {name: find_name(name, self.asked["names"]) for name in sorted({*lines, *map(find_scorer, lines)})}
        plan = {"lines": lines, "full": as_row(full), "title": title, "names": names}
        return {"x": "cache_share", **plan} if by_bytes else plan

    def plan_heat_map(self, name: str) -> dict[str, Any]:
        """What is drawn: {full, panels, title} as evals.grid_plots.draw_grids takes them."""
        asked = self.asked["heat_maps"][name]
        grids: dict[tuple[str, str], Grid] = {}
        squares = read_squares(self.find_data(f"{asked['data']}-grid"))
        for method, budget in dict.fromkeys((s.method, s.budget) for s in squares):
            own = [s for s in squares if (s.method, s.budget) == (method, budget)]
            grid = arrange({(s.length, s.depth): (s.score, s.n) for s in own})
            if grid is not None:
                grids[method, budget] = grid
        panels = {
            f"kept {100 * budget:g}%": {
                find_name(label, self.asked["names"]): grids[label, f"{budget:g}"] for label in asked["rows"]
            }
            for budget in asked["budgets"]
        }
        full = next((grid for (_, budget), grid in grids.items() if budget == ALL), None)
        return {"full": full, "panels": panels, "title": f"{asked['title']}; {count_square(grids.values())}"}

    def read_pairs(self, name: str) -> PairTables:
        """Scorers and allocators, as the description under `pairs` says."""
        asked = self.asked["pairs"][name]
        cells, names = self.read_cells(asked["data"]), self.asked["names"]
        return PairTables(**asked, names=names, folder=self.root / "docs", cells=cells)

    @property
    def figures(self) -> dict[Path, tuple[Draw, dict[str, Any]]]:
        """File -> what draws it, and of what."""
        return {
            **{self.find_figure(name): (draw_lines, self.plan_figure(name)) for name in self.asked["figures"]},
            **{self.find_figure(name): (draw_map, self.plan_heat_map(name)) for name in self.asked["heat_maps"]},
            **{self.find_figure(name): (draw_all_pairs, self.read_pairs(name).plan()) for name in self.asked["pairs"]},
        }

    def find_figure(self, name: str) -> Path:
        return self.root / "docs/figures" / f"{name}.png"


def as_row(cell: Cell) -> dict[str, Any]:
    return {"score": cell.score, "ci95": [cell.low, cell.high]}


def fingerprint(plan: Mapping[str, Any]) -> str:
    """Of what a figure shows, and how. The file carries it, so that it need not be drawn again to be compared."""
    looks = [str(find_look(label)) for label in plan.get("lines", ())]
    return hashlib.sha256(json.dumps([plan, looks], sort_keys=True, default=asdict).encode()).hexdigest()[:16]


def draw_lines(plan: Mapping[str, Any], path: Path) -> None:
    from evals.score_plots import draw_scores

    draw_scores(**{"x": "kept_share", **plan}, path=path, description=fingerprint(plan), formats=FORMATS)


def draw_map(plan: Mapping[str, Any], path: Path) -> None:
    from evals.grid_plots import draw_grids

    draw_grids(**plan, path=path, description=fingerprint(plan), formats=FORMATS)


def draw_all_pairs(plan: Mapping[str, Any], path: Path) -> None:
    from evals.pair_plots import draw_pairs

    draw_pairs(**plan, path=path, description=fingerprint(plan), formats=FORMATS)


def read_fingerprint(path: Path) -> str | None:
    from PIL import Image

    if not path.is_file():
        return None
    with Image.open(path) as image:
        return image.info.get("Description")


def find_stale(documents: Documents) -> list[Path]:
    """The pages and figures that are not what their data say."""
    pages = [p for p in documents.pages if documents.make_page(p) != p.read_text(encoding="utf-8")]
    return [*pages, *(path for path, (_, plan) in documents.figures.items() if is_stale(path, plan))]


def is_stale(path: Path, plan: Mapping[str, Any]) -> bool:
    there = all(path.with_suffix(ending).is_file() for ending in FORMATS)
    return not there or read_fingerprint(path) != fingerprint(plan)


def write(documents: Documents) -> list[Path]:
    """Write what is stale; the files written. Nothing is written where one of them cannot be made."""
    stale = find_stale(documents)
    for page in set(documents.pages) & set(stale):
        page.write_text(documents.make_page(page), encoding="utf-8")
    for path, (draw, plan) in documents.figures.items():
        if path in stale:
            draw(plan, path)
    return stale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if something is stale")
    check = parser.parse_args().check
    documents = Documents()
    try:
        stale = find_stale(documents) if check else write(documents)
    except ValueError as error:
        print(f"docs: {error}", file=sys.stderr)
        return 2
    for path in stale:
        print(f"{'stale' if check else 'written'}: {path.relative_to(ROOT)}")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
