"""Finished runs as markdown and as csv: method x budget x task, with intervals and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evals.report.compare import Difference
from evals.report.runs import Result, asked, keeps_all, label, order
from evals.text import percent, table

Compared = Mapping[str, Mapping[str, Mapping[str, Difference]]]
"""run id -> "method" or "full" -> task or "mean" -> difference (compare.comparisons)."""

LEVEL = 0.05

NOTE = (
    "Scores in per cent with 95% bootstrap intervals; kept: share of cache entries; cache: share of bytes. Bold: best "
    "at its budget. Differences are of the mean, on the same samples, with the 95% interval of a paired bootstrap; an "
    "asterisk: p < .05, corrected for the number of rows (Holm)."
)


def markdown(name: str, group: Sequence[Result], compared: Compared) -> str:
    tasks = tasks_of(group)
    shown = {kind: other for kind in ("method", "full") if (other := against(compared, kind))}
    lines = [f"## {name}", "", *by_budget(group), ""]
    head = ["method", "budget", "kept", "cache", "mean", *(f"minus {other}" for other in shown.values()), *tasks]
    lines += [row(head), row(["---"] * len(head))]
    for r in sorted(group, key=order):
        share = r["budget"]["cache_bytes"] / r["budget"]["full_cache_bytes"]
        differences = [minus(paired(r, compared, "mean", kind)) for kind in shown]
        each = [cell(entry, best(r, group, t)) if (entry := r["tasks"].get(t)) else "" for t in tasks]
        facts = [label(r), asked(r), f"{r['budget']['kept_share']:.3f}", f"{share:.3f}"]
        lines.append(row([*facts, cell(r, best(r, group, None)), *differences, *each]))
    counts = {task: sorted({r["tasks"][task]["n"] for r in group if task in r["tasks"]}) for task in tasks}
    samples = ", ".join(f"{task} {'/'.join(map(str, n))}" for task, n in counts.items())
    return "\n".join([*lines, "", f"{NOTE} Samples: {samples}.", ""])


def by_budget(group: Sequence[Result]) -> list[str]:
    """The mean of tasks at a glance: a line for each method, the best first, a column for each budget."""
    budgets: dict[str, Result] = {asked(r): r for r in sorted(group, key=order) if not keeps_all(r)}
    cells = {(label(r), asked(r)): cell(r, best(r, group, None)) for r in group}
    methods = sorted({label(r) for r in group if not keeps_all(r)}, key=lambda m: -top(m, group))
    head = [
        "method",
        *(f"kept {100 * r['config']['budget']:g}%" if r["config"]["budget"] else b for b, r in budgets.items()),
    ]
    full = [row([label(r), *[cell(r)] * len(budgets)]) for r in group if keeps_all(r)]
    return [
        row(head),
        row(["---"] * len(head)),
        *full,
        *(row([m, *(cells.get((m, b), "") for b in budgets)]) for m in methods),
    ]


def top(method: str, group: Sequence[Result]) -> float:
    """The mean of a method's scores over the budgets it was run at."""
    found = [r["score"] for r in group if label(r) == method]
    return sum(found) / len(found)


def overview(group: Sequence[Result], compared: Compared) -> str:
    """Means only, for the terminal."""
    other = against(compared, "method")
    rows = [["method", "budget", "kept", "mean score", *([f"minus {other}"] if other else [])]]
    for r in sorted(group, key=order):
        differences = [minus(paired(r, compared, "mean"))] if other else []
        rows.append([label(r), asked(r), f"{r['budget']['kept_share']:.3f}", cell(r), *differences])
    return table(rows)


def tasks_of(group: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(task for r in group for task in r["tasks"]))


def against(compared: Compared, kind: str) -> str | None:
    """What the runs are compared with, if any of them is."""
    return next((d["mean"].against for kinds in compared.values() if (d := kinds.get(kind))), None)


def paired(r: Result, compared: Compared, task: str, kind: str = "method") -> Difference | None:
    return compared.get(r["run_id"], {}).get(kind, {}).get(task)


def best(r: Result, group: Sequence[Result], task: str | None) -> bool:
    """Whether no other run at this budget has a better score in a task (None: in the mean)."""

    def score(run: Result) -> float | None:
        entry = run if task is None else run["tasks"].get(task)
        return None if entry is None else entry["score"]

    peers = [s for other in group if asked(other) == asked(r) and (s := score(other)) is not None]
    return not keeps_all(r) and len(peers) > 1 and score(r) == max(peers)


def row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def cell(score: Mapping[str, Any], bold: bool = False) -> str:
    value = percent(score["score"])
    return f"{f'**{value}**' if bold else value} ({percent(score['ci95'][0])}-{percent(score['ci95'][1])})"


def minus(d: Difference | None) -> str:
    if d is None:
        return ""
    star = "*" if d.p < LEVEL else ""
    return f"{100 * d.mean:+.1f}{star} ({100 * d.low:+.1f}..{100 * d.high:+.1f})"


COLUMNS = (
    *("run_id", "model", "benchmark", "seed", "limit"),
    *("label", "method", "scorer", "allocator", "protection", "budget", "budget_tokens"),
    *("task", "score", "n", "ci95_low", "ci95_high"),
    *("against", "difference", "difference_low", "difference_high", "p"),
    *("kept_share", "cache_bytes", "full_cache_bytes", "prefill_s", "ttft_s", "tpot_s"),
)


def csv_rows(r: Result, compared: Compared) -> list[dict[str, Any]]:
    """One row a task and one for their mean ("mean", whose p value is Holm's; those of tasks are not corrected)."""
    common = {**r, **r["config"], **r["budget"], **r["time"], "label": label(r)}
    tasks = {
        **r["tasks"],
        "mean": {"score": r["score"], "ci95": r["ci95"], "n": sum(t["n"] for t in r["tasks"].values())},
    }
    rows = []
    for task, t in tasks.items():
        one = {k: common.get(k) for k in COLUMNS}
        one |= {"task": task, "score": t["score"], "n": t["n"], "ci95_low": t["ci95"][0], "ci95_high": t["ci95"][1]}
        if d := paired(r, compared, task):
            one |= {"against": d.against, "difference": d.mean, "p": d.p}
            one |= {"difference_low": d.low, "difference_high": d.high}
        rows.append(one)
    return rows
