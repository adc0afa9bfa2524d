"""One self-contained page of all finished runs: tables to sort and filter, figures, sample predictions.

The page is one file that works from file:// and asks the network for nothing: style, script and pictures are inside it,
and its content security policy allows nothing else. Every string that comes from a run is escaped; should one slip
through, the policy still runs no script but the one whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from html import escape
from pathlib import Path
from typing import Any

from evals.report.captions import describe_runs
from evals.report.details import html_details
from evals.report.kept import html_kept
from evals.report.runs import label
from evals.text import percent, size
from lukv.names import BUDGETS

ASSETS = Path(__file__).parent / "assets"
MIME = {".png": "image/png", ".svg": "image/svg+xml"}

Row = Mapping[str, Any]
"""A finished run: its result.json. Optionally also `repeat` (the command that does this run alone), `command` (the one
that it came from), `depths` (evals.report.details.score_depths), `grid` (evals.grid.make_grid) and `samples` (a
few lines of its samples.jsonl), which are shown when the row is opened."""


def write_page(rows: Sequence[Row], figures: Mapping[str, Path], path: Path) -> None:
    """Write the page to `path`. `figures`: caption -> PNG or SVG file. Raises ValueError for a file of another kind."""
    code = (ASSETS / "page.js").read_text(encoding="utf-8")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()}'"
    )
    pictures = "".join(embed(caption, file) for caption, file in figures.items())
    html = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>LU-KV leaderboard</title>
<style>{(ASSETS / "page.css").read_text(encoding="utf-8")}</style>
</head>
<body>
<header>
<h1>KV cache eviction</h1>
<p>{len(rows)} finished runs, {datetime.now(timezone.utc):%d %B %Y}. Scores in per cent with their 95% interval;
the budget is the share of the cache that is <em>kept</em>. Bold: the best at that budget.
Shade: compared with the full cache. A click on a row opens it.</p>
</header>
<form id="filters">
{"".join(choice(key, rows) for key in FILTERS)}
<label>Search <input type="search" name="text" placeholder="words in a row"></label>
<output id="shown"></output>
<button type="reset">Show all</button>
</form>
<main>
{"".join(html_table(group) for group in sort_tables(rows)) or "<p>No finished runs yet.</p>"}
{html_kept(rows)}
{f'<section class="figures"><h2>Figures</h2>{pictures}</section>' if pictures else ""}
</main>
<script>{code}</script>
</body>
</html>
"""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html, encoding="utf-8")


def sort_tables(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each table, which are one experiment's. The full cache comes first, then the largest budget."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["experiment"], []).append(row)
    return [sorted(groups[name], key=lambda row: (-budget(row), -row["score"])) for name in sorted(groups)]


def budget(row: Row) -> float:
    """The budget as a number to sort by: a share, or tokens a head. The full cache is infinite."""
    return next((float(row["config"][key]) for key in BUDGETS if row["config"].get(key) is not None), math.inf)


def budget_text(row: Row) -> str:
    """The budget as a reader sees it: "20%", "128 tokens", "20% of bytes" or "full"."""
    value = budget(row)
    if row["config"]["budget_tokens"]:
        return f"{value:g} tokens"
    of_bytes = " of bytes" if row["config"].get("budget_bytes") else ""
    return "full" if math.isinf(value) else f"{100 * value:g}%{of_bytes}"


FILTERS = {"model": None, "benchmark": None, "method": None, "budget": budget_text}
"""The choices above the tables. Where a row's value is not simply its entry of that name, a function gives it."""


def filter_value(key: str, row: Row) -> str:
    read = FILTERS[key]
    return read(row) if read else str(row[key])


def choice(key: str, rows: Sequence[Row]) -> str:
    """A drop-down list of the values that the rows have. Any number of them can be chosen; none means all."""
    ordered = sorted(rows, key=budget if key == "budget" else lambda row: filter_value(key, row))
    values = [escape(v) for v in dict.fromkeys(filter_value(key, row) for row in ordered)]
    boxes = "".join(f'<label><input type="checkbox" name="{key}" value="{v}"> {v}</label>' for v in values)
    summary = f'<summary>{key.capitalize()}: <b data-of="{key}">all</b></summary>'
    return (
        f'<details class="choice">{summary}<fieldset><legend>{key.capitalize()}</legend>{boxes}</fieldset></details>\n'
    )


def html_table(rows: Sequence[Row]) -> str:
    """One table. Each run is a <tbody>, which holds its row and, hidden until it is opened, its details."""
    tasks = list(dict.fromkeys(task for row in rows for task in row["tasks"]))
    columns = [[entry_of(row, task) for row in rows] for task in (None, *tasks)]
    names = ["Method", "Budget", "Mean", *tasks, "Cache", "First token", "Per token"]
    kinds = ["text", *["number"] * (len(names) - 1)]
    heads = "".join(
        f'<th scope="col" data-kind="{kind}"><button type="button">{allow_breaks(name)}</button></th>'
        for name, kind in zip(names, kinds, strict=True)
    )
    bodies = []
    for i, row in enumerate(rows):
        cells = [
            method_cell(row),
            number_cell(budget(row), budget_text(row)),
            *(score_cell(i, column, rows) for column in columns),
            *cost_cells(row),
        ]
        values = "".join(f' data-{key}="{escape(filter_value(key, row))}"' for key in FILTERS)
        values += f' data-run="{escape(str(row.get("run_id")))}"'
        kind = ' class="full"' if math.isinf(budget(row)) else ""
        bodies.append(f"<tbody{kind}{values}><tr>{''.join(cells)}</tr>\n{html_details(row, len(names))}</tbody>\n")
    about = describe_runs(rows)
    title = f"{escape(rows[0]['benchmark'])} <small>{escape(about)}</small>"
    return (
        f'<section><h2>{title}</h2><div class="scroll"><table>\n'
        f"<thead><tr>{heads}</tr></thead>\n{''.join(bodies)}</table></div></section>\n"
    )


def allow_breaks(name: str) -> str:
    """Escape a name and allow a line break after each underscore."""
    return escape(name).replace("_", "_<wbr>")


def entry_of(row: Row, task: str | None) -> Mapping[str, Any]:
    """{score, ci95} of a task, or of the mean of tasks (None). Empty if the run does not have the task."""
    return row if task is None else row["tasks"].get(task, {})


def method_cell(row: Row) -> str:
    """The method's name, which opens the row, and beside it the parts and settings that are not in the name."""
    method = escape(row["method"])
    groups = () if math.isinf(budget(row)) else ("scorer", "allocator", "protection")  # full uses none
    parts = [row["config"].get(group) for group in groups]
    _, *settings = label(row).split()
    how = escape(", ".join(str(x) for x in [*parts, *settings] if x and x not in (row["method"], "own")))
    button = f'<button type="button" class="open" aria-expanded="false">{method}</button>'
    return f'<th scope="row" data-value="{method}">{button} <small>{how}</small></th>'


def score_cell(index: int, column: Sequence[Mapping[str, Any]], rows: Sequence[Row]) -> str:
    """One score in per cent. It is bold if no other at the same budget is better, and shaded by its share of the full
    cache's score."""
    if not column[index]:
        return "<td></td>"
    score, interval = column[index]["score"], column[index].get("ci95")
    others = [(budget(row), cell["score"]) for row, cell in zip(rows, column, strict=True) if cell]
    peers = [s for b, s in others if b == budget(rows[index])]
    full = max((s for b, s in others if math.isinf(b)), default=0)
    text = percent(score)
    if len(peers) > 1 and score == max(peers):
        text = f"<b>{text}</b>"
    if interval:
        text += f"<small>{percent(interval[0])} to {percent(interval[1])}</small>"
    shade = min(max(score / full, 0), 1) if full > 0 else 0
    return f'<td class="score" data-value="{score:g}" style="--share:{shade:.3f}">{text}</td>'


def cost_cells(row: Row) -> Iterable[str]:
    """Cache bytes (as a share of the full cache's), time to first token, time per token."""
    stored, full = (row["budget"].get(key) for key in ("cache_bytes", "full_cache_bytes"))
    share = stored / full if stored is not None and full else None
    yield number_cell(share, "" if share is None else f"{100 * share:.1f}%<small>{size(stored)}</small>")
    for key in ("ttft_s", "tpot_s"):
        seconds = row.get("time", {}).get(key)
        yield number_cell(seconds, "" if seconds is None else f"{1000 * seconds:{'.0f' if seconds >= 1 else '.3g'}} ms")


def number_cell(value: float | None, html: str) -> str:
    """A cell that sorts by `value`. A cell without one stays last."""
    return f"<td>{html}</td>" if value is None or math.isnan(value) else f'<td data-value="{value:g}">{html}</td>'


def embed(caption: str, file: Path) -> str:
    """The figure as HTML, with the file inside it."""
    mime = MIME.get(file.suffix.lower())
    if mime is None:
        raise ValueError(f"{file}: a figure must be one of {', '.join(MIME)}")
    data = base64.b64encode(file.read_bytes()).decode()
    text = escape(caption)
    return f'<figure><img src="data:{mime};base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>\n'
