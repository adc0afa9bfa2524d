"""Every finished run in runs/ as one table (markdown and csv), one plot per benchmark, and one page to look at.

python report.py [--runs runs] [--out runs/report]
python report.py score --predictions PATH      LongBench scores of a file of predictions, without a model
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.harness.record import read_json, read_samples
from evals.harness.show import percent, table

Result = Mapping[str, Any]


def finished(runs: Path) -> list[Result]:
    """The results of all evaluations that are finished, in the order of their names."""
    results = [read_json(path) for path in sorted(runs.glob("*/result.json"))]
    return [r for r in results if "tasks" in r]


def experiments(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results that may stand in one table, by what they have in common: model, benchmark, samples, seed."""
    groups: dict[str, list[Result]] = {}
    for r in results:
        groups.setdefault(r["experiment"], []).append(r)
    return groups


def keeps_all(r: Result) -> bool:
    return r["config"]["budget"] is None and r["config"]["budget_tokens"] is None


def label(r: Result) -> str:
    """The method part of the run id: method, scorer, and whatever else departs from the method's own choice."""
    return r["run_id"].split("__")[1]


def asked(r: Result) -> str:
    c = r["config"]
    return (
        f"{c['budget']:g}"
        if c["budget"] is not None
        else f"{c['budget_tokens']} tokens"
        if c["budget_tokens"]
        else "all"
    )


def order(r: Result) -> tuple[bool, float, float]:
    c = r["config"]
    return not keeps_all(r), c["budget"] or c["budget_tokens"] or 0, -r["score"]


def markdown(name: str, group: Sequence[Result]) -> str:
    tasks = list(dict.fromkeys(task for r in group for task in r["tasks"]))
    head = ["method", "budget", "kept", "cache", "mean", *tasks]
    lines = [f"## {name}", "", row(head), row(["---"] * len(head))]
    for r in sorted(group, key=order):
        share = r["budget"]["cache_bytes"] / r["budget"]["full_cache_bytes"]
        scores = [cell(r)] + [cell(r["tasks"][t]) if t in r["tasks"] else "" for t in tasks]
        lines.append(row([label(r), asked(r), f"{r['budget']['kept_share']:.3f}", f"{share:.3f}", *scores]))
    counts = {task: sorted({r["tasks"][task]["n"] for r in group if task in r["tasks"]}) for task in tasks}
    each = ", ".join(f"{task} {'/'.join(map(str, n))}" for task, n in counts.items())
    note = "Scores in per cent with 95% bootstrap intervals; kept: share of cache entries; cache: share of bytes."
    return "\n".join([*lines, "", f"{note} Samples: {each}.", ""])


def overview(group: Sequence[Result]) -> str:
    """Means only, for the terminal."""
    rows = [[label(r), asked(r), f"{r['budget']['kept_share']:.3f}", cell(r)] for r in sorted(group, key=order)]
    return table([["method", "budget", "kept", "mean score"], *rows])


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(score: Mapping[str, Any]) -> str:
    return f"{percent(score['score'])} ({percent(score['ci95'][0])}-{percent(score['ci95'][1])})"


COLUMNS = (
    *("run_id", "model", "benchmark", "seed", "limit"),
    *("method", "scorer", "allocator", "protection", "budget", "budget_tokens"),
    *("task", "score", "n", "ci95_low", "ci95_high"),
    *("kept_share", "cache_bytes", "full_cache_bytes", "prefill_s", "ttft_s", "tpot_s"),
)


def csv_rows(r: Result) -> list[dict[str, Any]]:
    """One row a task and one for their mean ("mean")."""
    common = {**r, **r["config"], **r["budget"], **r["time"]}
    tasks = {
        **r["tasks"],
        "mean": {"score": r["score"], "ci95": r["ci95"], "n": sum(t["n"] for t in r["tasks"].values())},
    }
    shared = {k: common.get(k) for k in COLUMNS}
    return [
        {**shared, "task": task, "score": t["score"], "n": t["n"], "ci95_low": t["ci95"][0], "ci95_high": t["ci95"][1]}
        for task, t in tasks.items()
    ]


SHOWN = 2
"""Samples of each task that the page shows of a run."""


def opened(r: Result, folder: Path) -> Result:
    """A result with what the page shows when its row is opened: the command that repeats it and some predictions."""
    by_task: dict[str, list[Result]] = {}
    for line in read_samples(folder / "samples.jsonl"):
        by_task.setdefault(line["task"], []).append(line)
    samples = [line for lines in by_task.values() for line in lines[:SHOWN]]
    return {**r, "samples": samples, "command": read_json(folder / "run.json").get("command")}


def write(runs: Path, out: Path) -> int:
    results = finished(runs)
    if not results:
        print(
            f"report.py: no finished run in {runs}/: start with  python run.py method=lukv budget=0.2", file=sys.stderr
        )
        return 2
    from evals.harness.leaderboard import write_page
    from evals.harness.plots import score_against_budget

    out.mkdir(parents=True, exist_ok=True)
    pages = []
    figures = {}
    for name, group in experiments(results).items():
        page = markdown(name, group)
        print(f"{name}\n{overview(group)}\n")
        lines: dict[str, list[dict[str, Any]]] = {}
        for r in group:
            if not keeps_all(r):
                lines.setdefault(label(r), []).append({**r, "kept_share": r["budget"]["kept_share"]})
        if lines:
            full = next((r for r in group if keeps_all(r)), None)
            score_against_budget(lines, full, name.replace("__", ", "), out / f"{name}.png")
            figures[f"Score against budget: {name.replace('__', ', ')}"] = out / f"{name}.png"
            page += f"\n![score against budget]({name}.png)\n"
        pages.append(page)
    (out / "report.md").write_text("# Results\n\n" + "\n".join(pages), encoding="utf-8")
    with (out / "scores.csv").open("w", newline="", encoding="utf-8") as f:
        sheet = csv.DictWriter(f, COLUMNS)
        sheet.writeheader()
        sheet.writerows(line for r in results for line in csv_rows(r))
    write_page([opened(r, runs / r["run_id"]) for r in results], figures, out / "leaderboard.html")
    print(f"{len(results)} runs: {out}/report.md, {out}/scores.csv, {out}/leaderboard.html")
    return 0


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
    commands = parser.add_subparsers(dest="command")
    scoring = commands.add_parser("score", help="score LongBench predictions")
    scoring.add_argument(
        "--predictions", type=Path, required=True, help="TASK.jsonl in the official format, or a folder"
    )
    scoring.add_argument("--protocol", default="official", help="whose scorer: official, defensivekv, kvpress, lukv")
    scoring.add_argument("--e", action="store_true", help="LongBench-E: scores by length")
    args = parser.parse_args()
    try:
        if args.command == "score":
            return score(args.predictions, args.protocol, args.e)
        return write(args.runs, args.out or args.runs / "report")
    except (ValueError, OSError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
