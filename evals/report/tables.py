"""Finished runs as markdown and as csv: method x budget x task, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.differences import Difference
from evals.report.compare import Compared
from evals.report.runs import Result, budget_label, keeps_all, label, sort_key, title_budget
from evals.text import percent, table

SIGNIFICANT = 0.05
"""A difference with a smaller p value gets an asterisk."""

NOTE = (
    "Scores in per cent with 95% intervals (evals/stats.py, mean_interval); kept: share of cache entries; cache: share "
    "of bytes. Bold: best at its budget. Differences are of the mean, on the same samples, with the 95% interval of a "
    "paired bootstrap; an asterisk: p < .05, corrected for the number of rows (Holm). Below 6 samples of each task "
    "there is neither."
)


def markdown(name: str, group: Sequence[Result], compared: Compared) -> str:
    """The section of one experiment: means by budget at a glance, then every run with its differences and tasks."""
    tasks = list(dict.fromkeys(task for r in group for task in r["tasks"]))
    others = {kind: other for kind in ("method", "full") if (other := compared_with(compared, kind))}
    head = ["method", "budget", "kept", "cache", "mean", *(f"minus {other}" for other in others.values()), *tasks]
    lines = [f"## {name}", "", *budget_table(group), "", *markdown_head(head)]
    for r in sorted(group, key=sort_key):
        share = r["budget"]["cache_bytes"] / r["budget"]["full_cache_bytes"]
        facts = [label(r), budget_label(r), f"{r['budget']['kept_share']:.3f}", f"{share:.3f}"]
        mean = format_score(r, is_best(r, group))
        differences = [format_difference(find_difference(r, compared, "mean", kind)) for kind in others]
        each = [format_score(r["tasks"][t], is_best(r, group, t)) if t in r["tasks"] else "" for t in tasks]
        lines.append(markdown_row([*facts, mean, *differences, *each]))
    counts = {task: sorted({r["tasks"][task]["n"] for r in group if task in r["tasks"]}) for task in tasks}
    samples = ", ".join(f"{task} {'/'.join(map(str, n))}" for task, n in counts.items())
    return "\n".join([*lines, "", f"{NOTE} Samples: {samples}.", ""])


def budget_table(group: Sequence[Result]) -> list[str]:
    """The means of tasks: a line for each method, the best first, and a column for each budget."""
    budgets = dict.fromkeys(budget_label(r) for r in sorted(group, key=sort_key) if not keeps_all(r))
    means = {(label(r), budget_label(r)): format_score(r, is_best(r, group)) for r in group}
    methods = sorted({label(r) for r in group if not keeps_all(r)}, key=lambda m: -mean_score(m, group))
    names = map(title_budget, budgets)
    full = [markdown_row([label(r), *[format_score(r)] * len(budgets)]) for r in group if keeps_all(r)]
    rows = [markdown_row([method, *(means.get((method, b), "") for b in budgets)]) for method in methods]
    return [*markdown_head(["method", *names]), *full, *rows]


def mean_score(method: str, group: Sequence[Result]) -> float:
    """The mean of a method's scores over the budgets it was run at."""
    scores = [r["score"] for r in group if label(r) == method]
    return sum(scores) / len(scores)


def overview(group: Sequence[Result], compared: Compared) -> str:
    """The means of one experiment as a plain text table for the terminal."""
    other = compared_with(compared, "method")
    rows = [["method", "budget", "kept", "mean score", *([f"minus {other}"] if other else [])]]
    for r in sorted(group, key=sort_key):
        difference = [format_difference(find_difference(r, compared, "mean"))] if other else []
        rows.append([label(r), budget_label(r), f"{r['budget']['kept_share']:.3f}", format_score(r), *difference])
    return table(rows)


def compared_with(compared: Compared, kind: str) -> str | None:
    """What the runs are compared with, or None if no run is."""
    return next((d["mean"].against for kinds in compared.values() if (d := kinds.get(kind))), None)


def find_difference(r: Result, compared: Compared, task: str, kind: str = "method") -> Difference | None:
    return compared.get(r["run_id"], {}).get(kind, {}).get(task)


def is_best(r: Result, group: Sequence[Result], task: str | None = None) -> bool:
    """Whether no other run at this budget has a better score in a task (None: in the mean of tasks).

    The full cache is never the best, nor is a run that is alone at its budget.
    """
    entries = [run if task is None else run["tasks"].get(task) for run in group if budget_label(run) == budget_label(r)]
    scores = [entry["score"] for entry in entries if entry is not None]
    mine = r if task is None else r["tasks"][task]
    return not keeps_all(r) and len(scores) > 1 and mine["score"] == max(scores)


def markdown_head(names: Sequence[str]) -> list[str]:
    return [markdown_row(names), markdown_row(["---"] * len(names))]


def markdown_row(cells: Sequence[str]) -> str:
    """A cell may hold any text: what would end it or the row is escaped."""
    return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"


def format_score(score: Mapping[str, Any], bold: bool = False) -> str:
    """{score, ci95} in per cent, such as "**51.2** (49.0-53.5)"."""
    value = percent(score["score"])
    return f"{f'**{value}**' if bold else value} ({percent(score['ci95'][0])}-{percent(score['ci95'][1])})"


def format_difference(d: Difference | None) -> str:
    """A difference in points of per cent, such as "-3.1* (-5.0..-1.2)", or "-3.1" of too few samples; empty without
    one."""
    if d is None:
        return ""
    if d.low is None or d.high is None:
        return f"{100 * d.mean:+.1f}"
    star = "*" if d.p < SIGNIFICANT else ""
    return f"{100 * d.mean:+.1f}{star} ({100 * d.low:+.1f}..{100 * d.high:+.1f})"


COLUMNS = (
    *("run_id", "model", "benchmark", "seed", "limit"),
    *("label", "method", "scorer", "allocator", "protection", "budget", "budget_tokens", "budget_bytes"),
    "cache_dtype",
    *("task", "score", "n", "ci95_low", "ci95_high"),
    *("against", "difference", "difference_low", "difference_high", "p"),
    *("kept_share", "cache_bytes", "full_cache_bytes", "prefill_s", "ttft_s", "tpot_s"),
)


def csv_rows(r: Result, compared: Compared) -> list[dict[str, Any]]:
    """A row for each task and one for their mean (task "mean").

    Scores, shares and differences are in 0..1, times in seconds. Only the p value of the mean is corrected (Holm).
    """
    common = {**r, **r["config"], **r["budget"], **r["time"], "label": label(r)}
    samples = sum(task["n"] for task in r["tasks"].values())
    tasks = {**r["tasks"], "mean": {"score": r["score"], "ci95": r["ci95"], "n": samples}}
    rows = []
    for task, t in tasks.items():
        one = {k: common.get(k) for k in COLUMNS}
        one |= {"task": task, "score": t["score"], "n": t["n"], "ci95_low": t["ci95"][0], "ci95_high": t["ci95"][1]}
        if d := find_difference(r, compared, task):
            one |= {"against": d.against, "difference": d.mean, "p": d.p}
            one |= {"difference_low": d.low, "difference_high": d.high}
        rows.append(one)
    return rows
