"""The heat map of an experiment whose samples have a length and a depth, as those of benchmark=needle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from evals.grid import Grid, count_square, make_grid
from evals.grid_plots import draw_grids
from evals.looks import find_name
from evals.report.captions import describe_runs
from evals.report.runs import Result, budget_label, keeps_all, label, sort_key
from evals.report.tables import mean_score
from evals.run.folder import read_samples


def read_grids(group: Sequence[Result], runs: Path) -> dict[str, Grid]:
    """Run id -> grid, of the runs that have one."""
    found = {r["run_id"]: make_grid(read_samples(runs / r["run_id"] / "samples.jsonl")) for r in group}
    return {run_id: grid for run_id, grid in found.items() if grid is not None}


def draw_needles(name: str, group: Sequence[Result], runs: Path, out: Path) -> dict[str, Path]:
    """Draw the experiment's heat map: caption -> file. None where it has no grid."""
    grids = read_grids(group, runs)
    shown = [r for r in sorted(group, key=sort_key) if r["run_id"] in grids]
    if not shown:
        return {}
    full = next((grids[r["run_id"]] for r in shown if keeps_all(r)), None)
    ranked = sorted((r for r in shown if not keeps_all(r)), key=lambda r: -mean_score(label(r), shown))
    panels: dict[str, dict[str, Grid]] = {
        name_budget(r): {} for r in sorted(ranked, key=lambda r: sort_key(r)[:2], reverse=True)
    }
    for r in ranked:
        panels[name_budget(r)][find_name(label(r))] = grids[r["run_id"]]
    title = f"{describe_runs(shown)}; {count_square(grids.values())}"
    path = out / f"{name}__needle.png"
    draw_grids(full, panels, title, path)
    return {f"Facts found by length and depth: {title}": path}


def name_budget(r: Result) -> str:
    budget = budget_label(r)
    return f"kept {100 * float(budget):g}%" if r["config"]["budget"] is not None else budget
