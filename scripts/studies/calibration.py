"""How should a table be calibrated, and how far does it carry over? Many calibrations, evaluated on the same samples.

    python -m scripts.studies.calibration settings seeds contexts tasks lengths [--runs runs] [--limit 200]

Each variant is one `python run.py job=calibrate` into RUNS/tables/NAME. Then one sweep evaluates all variants of a
study with one prefill. The commands are printed, and finished runs are not repeated. The report shows the score of each
method and budget, and its difference from the shipped calibration on the same samples (paired bootstrap).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from evals.differences import compare
from evals.report.runs import Result, keeps_all, read_results, read_scores
from evals.report.tables import format_score, markdown_head, markdown_row

FAMILIES = {
    "single": ("niah_single_1", "niah_single_3_noise", "niah_single_2_prose"),
    "multikey": ("niah_multikey_2", "niah_multikey_1_noise", "niah_multikey_1_prose"),
    "multivalue": ("niah_multivalue_noise", "niah_multivalue_prose"),
    "multiquery": ("niah_multiquery_noise", "niah_multiquery_prose"),
    "vt": ("vt",),
    "fwe": ("fwe",),
}
BENCHMARK = "ruler_learnt"
METHODS = ("lukv", "lukv_plus")
SHIPPED = "shipped"
"""The variant with no override: job=calibrate as it is, 8 contexts of each task."""


def draw_from(tasks: Sequence[str], contexts: int) -> tuple[str, ...]:
    """Overrides that calibrate on so many contexts of each of these tasks."""
    return f"calibration.benchmark.tasks=[{','.join(tasks)}]", f"calibration.contexts={contexts}"


MIXED = ("niah_multikey_1_prose", "niah_single_3_noise", "niah_multivalue_noise", "niah_multiquery_prose", "vt")


@dataclass(frozen=True)
class Study:
    """Overrides of job=calibrate by the variant's name, and the budgets and lengths it is evaluated at."""

    variants: Mapping[str, tuple[str, ...]]
    budgets: tuple[float, ...] = (0.05, 0.1, 0.2)
    lengths: tuple[int, ...] = (1024,)


STUDIES = {
    "settings": Study(
        {
            "horizon 1": ("job.oracle.horizon=1",),
            "horizon 8": ("job.oracle.horizon=8",),
            "horizon 24": ("job.oracle.horizon=24",),
            "question rows too": ("job.oracle.question_rows=true",),
            "reference answers": ("job.oracle.continuation=reference",),
            "sampled answers": ("job.oracle.continuation=sampled",),
            "layers not normalised": ("job.oracle.normalise=false",),
            "aggregation losses": ("job.aggregation=losses",),
            "polish": ("job.polish=true",),
            "scope layer": ("job.scope=layer",),
            "curve power 1": ("job.power=1",),
            "curve power 2": ("job.power=2",),
            "no questions": ("calibration=reconstruct",),
        }
    ),
    "seeds": Study({f"seed {seed}": (f"calibration.benchmark.seed={seed}",) for seed in (1, 2, 3, 4, 5)}),
    "contexts": Study(
        {
            "1 context": draw_from(MIXED[:1], 1),
            "5 contexts": draw_from(MIXED, 1),
            "20 contexts": draw_from(MIXED, 4),
            "100 contexts": draw_from(MIXED, 20),
        }
    ),
    "tasks": Study({name: draw_from(tasks, 24 // len(tasks)) for name, tasks in FAMILIES.items()}),
    "lengths": Study(
        {f"{n} tokens": (f"calibration.benchmark.length={n}",) for n in (512, 2048)}, lengths=(1024, 2048)
    ),
}


def run(*overrides: str) -> None:
    """Print and run `python run.py` with these overrides. Raises SystemExit if it fails."""
    print("python run.py " + " ".join(f"'{o}'" if set("[]{}() ") & set(o) else o for o in overrides), flush=True)
    if code := subprocess.run(
        [sys.executable, "run.py", *overrides], stdout=subprocess.DEVNULL, check=False
    ).returncode:
        raise SystemExit(code)


def table_folder(runs: Path, variant: str) -> Path:
    return runs / "tables" / variant.replace(" ", "-")


def calibrate(study: Study, runs: Path) -> None:
    for name, overrides in {SHIPPED: (), **study.variants}.items():
        where = (f"runs={runs}", f"model.tables={table_folder(runs, name)}", "job.save=true")
        run("job=calibrate", "job.scorers=[keydiff,utility_probe]", *where, *overrides)


def evaluate(study: Study, runs: Path, limit: int) -> None:
    folders = ",".join(str(table_folder(runs, name)) for name in (SHIPPED, *study.variants))
    for length in study.lengths:
        samples = (f"benchmark={BENCHMARK}", f"benchmark.length={length}", f"limit={limit}")
        methods = (f"method={','.join(METHODS)}", f"budget={','.join(map(str, study.budgets))}")
        run("-m", f"runs={runs}", f"model.tables={folders}", *methods, *samples)


def find_results(runs: Path, length: int, limit: int) -> dict[tuple[str, str, float], Result]:
    """The results by (method, variant, budget). The full cache's is at ("full", "", 1)."""
    found = {}
    for result in read_results(runs):
        config = yaml.safe_load((runs / result["run_id"] / "config.yaml").read_text())
        tested = config["benchmark"]
        if (tested.get("name"), tested["length"], config["limit"]) != (BENCHMARK, length, limit):
            continue
        if keeps_all(result):
            found["full", "", 1.0] = result
        elif (folder := Path(config["allocator"].get("path", "")).parent).parent == runs / "tables":
            found[result["method"], folder.name, config["budget"]] = result
    return found


def print_report(name: str, study: Study, runs: Path, limit: int) -> None:
    """Print the tables of docs/results.md and docs/beyond-embedded.md."""
    for length in study.lengths:
        results = find_results(runs, length, limit)
        full = results["full", "", 1.0]
        print(f"\n## {name}, tested at {length} tokens, {limit} samples a task; full cache {format_score(full)}\n")
        columns = [(method, budget) for method in METHODS for budget in study.budgets]
        head = ["calibrated on", *(f"{method}, kept {100 * budget:g}%" for method, budget in columns)]
        print("\n".join(markdown_head(head)))
        for variant in (SHIPPED, *study.variants):
            found = [(results[m, variant.replace(" ", "-"), b], results[m, SHIPPED, b]) for m, b in columns]
            compared = (format_score(mine) if variant == SHIPPED else format_change(mine, x, runs) for mine, x in found)
            print(markdown_row([variant, *compared]))
        print()
        if name == "tasks":
            print_by_family(results, study, runs)


def format_change(mine: Result, usual: Result, runs: Path) -> str:
    """A score and its paired difference from the shipped calibration's. Empty if the variant changes nothing."""
    d = compare(*(read_scores(runs / r["run_id"]) for r in (mine, usual)), str(usual["run_id"]))["mean"]
    if d.low == d.mean == d.high == 0:
        return ""
    return f"{100 * mine['score']:.1f}, {100 * d.mean:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})"


def print_by_family(
    results: Mapping[tuple[str, str, float], Result], study: Study, runs: Path, budget: float = 0.1
) -> None:
    """Print the scores of calibrations on one family, tested on each family."""
    for method in METHODS:
        head = [f"{method}, kept {100 * budget:g}%: calibrated on", *(f"tested on {name}" for name in FAMILIES)]
        print("\n".join(markdown_head(head)))
        for variant in (SHIPPED, *study.variants):
            found = read_scores(runs / results[method, variant, budget]["run_id"])
            means = [[sum(found[t].values()) / len(found[t]) for t in tasks] for tasks in FAMILIES.values()]
            print(markdown_row([variant, *(f"{100 * sum(m) / len(m):.1f}" for m in means)]))
        print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", choices=STUDIES, metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--limit", type=int, default=200, help="samples of each task (default 200)")
    arguments = parser.parse_args()
    for name in arguments.studies:
        calibrate(STUDIES[name], arguments.runs)
        evaluate(STUDIES[name], arguments.runs, arguments.limit)
        print_report(name, STUDIES[name], arguments.runs, arguments.limit)


if __name__ == "__main__":
    main()
