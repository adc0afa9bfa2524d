"""Every finished run in runs/ as tables (markdown and csv), figures, and one page to look at.

python report.py [--runs runs] [--out runs/report] [--against lukv]
python report.py --select model=tiny --select budget=0.1,0.2 --group-by budget    of these runs, a column a budget
python report.py score --predictions PATH      LongBench scores of a file of predictions, without a model
python report.py data --name NAME              docs/data/NAME.csv: one line a cell, what `make docs` writes tables from
python report.py export --format kvpress       runs of RULER and LongBench as kvpress's leaderboard takes them
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any, NoReturn

from evals.grid import make_grid
from evals.report.compare import compare_group, find_label
from evals.report.data import collect, collect_squares, write_data
from evals.report.details import score_depths
from evals.report.paper import GROUP_BY, make_tables, write_tables
from evals.report.runs import Result, group_by_experiment, keeps_all, label, read_latencies, read_results
from evals.report.select import KEYS, select_results
from evals.report.tables import COLUMNS, csv_rows, markdown, overview
from evals.run.files import read_json
from evals.run.folder import read_samples
from evals.run.settings import find_shipped
from evals.run.signals import survive_closed_pipe
from evals.text import table
from lukv.names import suggest_nearest

COMMANDS = ("score", "data", "export")

SAMPLES_A_TASK = 3
"""Samples of each task that the page shows of a run."""


def write(runs: Path, out: Path, against: str | None, select: Sequence[str] = (), by: str = "budget") -> int:
    """Write all files of the report. Each run is compared with the method `against` (lukv, if it was run).

    select: KEY=VALUE that the runs must meet. by: what the columns of tables.tex and tables.md are.
    """
    found, latencies = read_results(runs), read_latencies(runs)
    results = select_results(found, select)
    if not results and not latencies:
        return stop(f"no finished run in {runs}/: start with  python run.py method=lukv budget=0.2")
    said: list[str] = []  # printed last: whoever reads it may close the pipe
    groups = group_by_experiment(results)
    method = against or "lukv"
    others = {name: find_label(method, group) for name, group in groups.items()}
    if against is not None and not any(others.values()):
        known = sorted({label(r) for group in groups.values() for r in group if not keeps_all(r)})
        return stop(f"--against {against}: no such run. There are {', '.join(known) or 'none'}")
    from evals.report.figures import draw_experiment, draw_latencies, draw_seeds
    from evals.report.grids import draw_needles
    from evals.report.page import write_page

    out.mkdir(parents=True, exist_ok=True)
    sections: list[str] = []
    rows: list[dict[str, Any]] = []
    figures: dict[str, Path] = {}
    for name, group in groups.items():
        compared = compare_group(group, others[name], runs)
        said.append(f"{name}\n{overview(group, compared)}\n")
        drawings = {**draw_needles(name, group, runs, out), **draw_experiment(name, group, out)}
        sections += [markdown(name, group, compared), *links(drawings)]
        rows += [row for r in group for row in csv_rows(r, compared)]
        figures |= drawings
    if drawings := draw_seeds(groups, out):
        sections += ["## Over seeds\n", *links(drawings)]
        figures |= drawings
    write_tables(make_tables(groups, by, others, runs), out)
    if latencies:
        drawings = draw_latencies(latencies, out)
        sections += ["## Latency and memory\n", *links(drawings)]
        figures |= drawings
    (out / "report.md").write_text("# Results\n\n" + "\n".join(sections), encoding="utf-8")
    with (out / "scores.csv").open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    shown = [add_details(r, runs / r["run_id"]) for group in groups.values() for r in group]
    write_page(shown, figures, out / "leaderboard.html")
    files = "report.md, scores.csv, tables.tex, tables.md, leaderboard.html"
    print(*said, f"{len(results)} runs in {out}/: {files}", sep="\n")
    return 0


def links(figures: dict[str, Path]) -> list[str]:
    """The figures as markdown: caption -> file in the report's own folder."""
    return [f"![{caption}]({file.name})\n" for caption, file in figures.items()]


def add_details(r: Result, folder: Path) -> Result:
    """A result with what the page shows when its row is opened: the commands, scores by depth, and some samples."""
    lines = read_samples(folder / "samples.jsonl")
    by_task: dict[str, list[Result]] = {}
    for line in lines:
        by_task.setdefault(line["task"], []).append(line)
    samples = [line for found in by_task.values() for line in found[:SAMPLES_A_TASK]]
    about = read_json(folder / "run.json")
    commands = {"repeat": about.get("repeat"), "command": about.get("command")}
    return {**r, **commands, "samples": samples, "depths": score_depths(lines), "grid": make_grid(lines)}


def score(predictions: Path, protocol: str, e: bool) -> int:
    """Print the LongBench scores (per cent) of prediction logs, and a second opinion on those that are ROUGE-L."""
    from evals.longbench import score_predictions
    from evals.longbench.second_opinion import DIFFERENCE, compare_rouge

    scores = score_predictions(predictions, protocol, e)
    names = list(dict.fromkeys(name for task in scores for name in task.scores))
    rows = [
        [task.task, str(task.n), *(f"{task.scores[n]:.2f}" if n in task.scores else "" for n in names)]
        for task in scores
    ]
    print(table([["task", "n", *names], *rows]))
    if rouge := compare_rouge(predictions.expanduser()):
        both = [[task, f"{ours:.2f}", f"{theirs:.2f}"] for task, ours, theirs in rouge]
        print("\n" + table([["ROUGE-L of all samples", "LongBench's", "rouge-score"], *both]))
        print(DIFFERENCE)
    return 0


def write_cells(runs: Path, only: str, file: Path) -> int:
    """Write the cells of finished runs as csv, and beside them the squares of those that have a grid."""
    cells = collect(runs, only)
    write_data(file, cells)
    print(f"{len({cell.run_id for cell in cells})} runs, {len(cells)} cells: {file}")
    if squares := collect_squares(runs, only):
        grid = file.with_name(f"{file.stem}-grid.csv")
        write_data(grid, squares)
        print(f"{len({square.run_id for square in squares})} runs, {len(squares)} squares of length and depth: {grid}")
    return 0


def write_export(runs: Path, only: str, to: Path) -> int:
    """Write finished runs in kvpress's layout, and say what tells them from kvpress's own."""
    from evals.report.export import export

    entries = export(runs, only, to)
    for entry in entries:
        print(entry.folder, *(f"    {line}" for line in entry.differences), sep="\n")
    print(f"{len({entry.run_id for entry in entries})} runs, {len(entries)} folders: {to}/")
    return 0


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as run.py does."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """A mistyped option is named before its value is taken for a command. Each command checks its own options."""
        args = sys.argv[1:] if args is None else args
        known = ["--help", *re.findall(r"--[\w-]+", self.format_usage())]
        for option in (a.partition("=")[0] for a in takewhile(lambda a: a not in COMMANDS, args) if a.startswith("--")):
            if not any(name.startswith(option) for name in known):
                self.error(f"no option {option}.{suggest_nearest(option, known)}")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        end = "" if message[-1] in ".?" else "."
        sys.exit(stop(f"{message}{end} All options: python {self.prog} --help"))


def stop(line: str) -> int:
    """Say what is wrong; the exit code."""
    print(f"report.py: {line}", file=sys.stderr)
    return 2


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", type=Path, default=find_shipped("runs"), help="folder of the run folders (default: runs)"
    )
    parser.add_argument("--out", type=Path, help="folder to write to (default: RUNS/report)")
    parser.add_argument("--against", metavar="METHOD", help="compare the others with it, on the same samples (lukv)")
    parser.add_argument(
        "--select",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"only these runs (may be repeated). KEY: {', '.join(KEYS)}; VALUE: one, a few with commas, or a pattern",
    )
    parser.add_argument(
        "--group-by", default="budget", choices=GROUP_BY, help="the columns of tables.tex and tables.md (budget)"
    )
    commands = parser.add_subparsers(dest="command")
    scoring = commands.add_parser("score", help="score LongBench predictions")
    scoring.add_argument(
        "--predictions", type=Path, required=True, help="TASK.jsonl in the official format, or a folder"
    )
    scoring.add_argument(
        "--protocol", default="official", help="whose scorer: official, agnostic, defensivekv, kvpress, lukv"
    )
    scoring.add_argument("--e", action="store_true", help="LongBench-E: scores by length")
    data = commands.add_parser("data", help="finished runs as docs/data/NAME.csv, which `make docs` reads")
    data.add_argument("--name", required=True, help="of the file")
    data.add_argument("--runs", type=Path, default=argparse.SUPPRESS, help="folder of the run folders (default: runs)")
    data.add_argument("--only", default="*", metavar="PATTERN", help="of the ids of the runs to take (default: all)")
    data.add_argument(
        "--to", type=Path, default=find_shipped("docs/data"), help="folder to write to (default: docs/data)"
    )
    out = commands.add_parser("export", help="finished runs in the layout of somebody else's leaderboard")
    out.add_argument("--format", required=True, choices=["kvpress"], help="whose")
    out.add_argument("--runs", type=Path, default=argparse.SUPPRESS, help="folder of the run folders (default: runs)")
    out.add_argument("--only", default="*", metavar="PATTERN", help="of the ids of the runs to take (default: all)")
    out.add_argument("--to", type=Path, help="folder to write to (default: RUNS/report/kvpress)")
    args = parser.parse_args()
    try:
        with survive_closed_pipe():
            if args.command == "score":
                return score(args.predictions, args.protocol, args.e)
            if args.command == "data":
                return write_cells(args.runs, args.only, args.to / f"{args.name}.csv")
            if args.command == "export":
                return write_export(args.runs, args.only, args.to or args.runs / "report" / "kvpress")
            return write(args.runs, args.out or args.runs / "report", args.against, args.select, args.group_by)
        return 0
    except (ValueError, OSError) as error:
        return stop(str(error))


if __name__ == "__main__":
    sys.exit(main())
