"""Every finished run in runs/ as tables (markdown and csv), figures, and one page to look at.

python report.py [--runs runs] [--out runs/report] [--against lukv]
python report.py score --predictions PATH      LongBench scores of a file of predictions, without a model
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

from evals.report.compare import comparisons, reference_of
from evals.report.runs import Result, experiments, finished, keeps_all, label, latencies
from evals.report.show import table
from evals.report.tables import COLUMNS, csv_rows, markdown, overview
from evals.run.folder import read_json, read_samples

SHOWN = 2
"""Samples of each task that the page shows of a run."""


def opened(r: Result, folder: Path) -> Result:
    """A result with what the page shows when its row is opened: the command that repeats it and some predictions."""
    by_task: dict[str, list[Result]] = {}
    for line in read_samples(folder / "samples.jsonl"):
        by_task.setdefault(line["task"], []).append(line)
    samples = [line for lines in by_task.values() for line in lines[:SHOWN]]
    return {**r, "samples": samples, "command": read_json(folder / "run.json").get("command")}


def write(runs: Path, out: Path, against: str | None) -> int:
    """All files of the report. `against`: the method that the others are compared with (lukv, if it was run)."""
    results, latency = finished(runs), latencies(runs)
    if not results and not latency:
        return stop(f"no finished run in {runs}/: start with  python run.py method=lukv budget=0.2")
    groups = experiments(results)
    if against is not None and not any(reference_of(against, group) for group in groups.values()):
        known = sorted({label(r) for r in results if not keeps_all(r)})
        return stop(f"--against {against}: no such run. There are {', '.join(known) or 'none'}")
    from evals.report.figures import of_latency, of_scores
    from evals.report.page import write_page

    out.mkdir(parents=True, exist_ok=True)
    pages: list[str] = []
    rows: list[dict[str, Any]] = []
    figures: dict[str, Path] = {}
    for name, group in groups.items():
        compared = comparisons(group, against or "lukv", runs)
        print(f"{name}\n{overview(group, compared)}\n")
        pictures = of_scores(name, group, out)
        pages += [markdown(name, group, compared), *(f"![{text}]({file.name})\n" for text, file in pictures.items())]
        rows += [line for r in group for line in csv_rows(r, compared)]
        figures |= pictures
    if latency:
        pictures = of_latency(latency, out)
        pages += ["## Latency and memory\n", *(f"![{text}]({file.name})\n" for text, file in pictures.items())]
        figures |= pictures
    (out / "report.md").write_text("# Results\n\n" + "\n".join(pages), encoding="utf-8")
    with (out / "scores.csv").open("w", newline="", encoding="utf-8") as f:
        sheet = csv.DictWriter(f, COLUMNS)
        sheet.writeheader()
        sheet.writerows(rows)
    write_page([opened(r, runs / r["run_id"]) for r in results], figures, out / "leaderboard.html")
    print(f"{len(results)} runs: {out}/report.md, {out}/scores.csv, {out}/leaderboard.html")
    return 0


def stop(line: str) -> int:
    print(f"report.py: {line}", file=sys.stderr)
    return 2


def score(predictions: Path, protocol: str, e: bool) -> int:
    from evals.longbench import score_predictions

    found = score_predictions(predictions, protocol, e)
    names = list(dict.fromkeys(name for task in found for name in task.scores))
    rows = [
        [task.task, str(task.n), *(f"{task.scores[n]:.2f}" if n in task.scores else "" for n in names)]
        for task in found
    ]
    print(table([["task", "n", *names], *rows]))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the run folders (default: runs)")
    parser.add_argument("--out", type=Path, help="folder to write to (default: RUNS/report)")
    parser.add_argument("--against", metavar="METHOD", help="compare the others with it, on the same samples (lukv)")
    commands = parser.add_subparsers(dest="command")
    scoring = commands.add_parser("score", help="score LongBench predictions")
    scoring.add_argument(
        "--predictions", type=Path, required=True, help="TASK.jsonl in the official format, or a folder"
    )
    scoring.add_argument(
        "--protocol", default="official", help="whose scorer: official, agnostic, defensivekv, kvpress, lukv"
    )
    scoring.add_argument("--e", action="store_true", help="LongBench-E: scores by length")
    args = parser.parse_args()
    try:
        if args.command == "score":
            return score(args.predictions, args.protocol, args.e)
        return write(args.runs, args.out or args.runs / "report", args.against)
    except (ValueError, OSError) as error:
        return stop(str(error))


if __name__ == "__main__":
    sys.exit(main())
