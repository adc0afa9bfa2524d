"""What opens below a run on the page: how to repeat it, what it kept, where its answers stood, some of its samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from evals.text import percent, size

DEPTHS = 5
"""Parts of a context, from its beginning to its end, in which scores are told apart."""


def score_depths(lines: Iterable[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    """Task -> the mean score (0..1) of the samples whose answer stands in each of DEPTHS parts of the context.

    None for a part that has none. Tasks whose contexts do not say the answer are left out.

    lines: of samples.jsonl.
    """
    found: dict[str, list[list[float]]] = {}
    for line in lines:
        if line.get("answer_depth") is not None and "error" not in line:
            parts = found.setdefault(line["task"], [[] for _ in range(DEPTHS)])
            parts[min(int(line["answer_depth"] * DEPTHS), DEPTHS - 1)].append(line["score"])
    return {task: [sum(part) / len(part) if part else None for part in parts] for task, parts in found.items()}


def html_details(row: Mapping[str, Any], columns: int) -> str:
    """The row of a table that opens below a run; `columns` wide."""
    kept, peak, batch = (
        row.get(part, {}).get(key)
        for part, key in (("budget", "kept_share"), ("memory", "peak_bytes"), ("time", "batch"))
    )
    came_from = row.get("command")
    facts = {
        "Run": row.get("run_id"),
        "Again": code(row.get("repeat") or came_from),
        "Came from": code(came_from) if row.get("repeat") and row["repeat"] != came_from else None,
        "Samples": ", ".join(f"{task} {entry.get('n', '?')}" for task, entry in row["tasks"].items()),
        "Kept": kept and f"{100 * kept:.2f}% of the cache's entries",
        "Times": batch and f"medians over batches of {batch:g} contexts",
        "Peak memory": peak and size(peak),
    }
    listed = "".join(
        f"<dt>{name}</dt><dd>{value if isinstance(value, Code) else escape(str(value))}</dd>"
        for name, value in facts.items()
        if value
    )
    heads = row.get("budget", {}).get("heads")
    maps = heat_map("Kept share of each KV head (across) and layer (down)", heads) if heads else ""
    if grid := row.get("grid"):
        depths = [f"{100 * depth:g}%" for depth in grid.depths]
        caption = "Facts found by length (across, tokens) and depth of the needle (down)"
        maps += heat_map(caption, grid.scores, depths, [str(length) for length in grid.lengths])
    elif by_task := row.get("depths"):
        maps += heat_map(
            "Score by where the answer stands, from the beginning to the end", [*by_task.values()], [*by_task]
        )
    samples = "".join(map(html_sample, row.get("samples", ())))
    return (
        f'<tr class="details" hidden><td colspan="{columns}"><div class="inside"><dl>{listed}</dl>'
        f"{f'<div class=maps>{maps}</div>' if maps else ''}{f'<ul class=samples>{samples}</ul>' if samples else ''}"
        f"</div></td></tr>"
    )


class Code(str):
    """HTML that is escaped already."""


def code(command: Any) -> Code | None:
    """A command, which one click selects whole."""
    return Code(f"<code>{escape(str(command))}</code>") if command else None


def heat_map(
    caption: str, values: Sequence[Sequence[float | None]], names: Sequence[str] = (), across: Sequence[str] = ()
) -> str:
    """Shares (0..1) as shaded squares, a row each. Where rows have names, each square has its value in per cent.
    across: names of the columns, of a map whose rows have some."""
    wide = len(values[0])
    squares = [f'<i class="across">{escape(name)}</i>' for name in ("", *across)] if across else []
    for i, row in enumerate(values):
        if names:
            squares.append(f"<i>{escape(names[i])}</i>")
        for share in row:
            text = "" if share is None or not names else f"{100 * share:.0f}"
            shade = "" if share is None else f' style="--share:{share:.2f}"'
            squares.append(f"<b{shade}>{text}</b>")
    first = "max-content " if names else ""
    kind = "named" if names else "plain"
    return (
        f'<figure class="map {kind}"><div style="grid-template-columns:{first}repeat({wide},1fr)">{"".join(squares)}'
        f"</div><figcaption>{escape(caption)}</figcaption></figure>"
    )


def html_sample(line: Mapping[str, Any]) -> str:
    """A line of samples.jsonl: the question, and below it side by side what was said, what was expected, the rest."""
    score = "failed" if line.get("score") is None else f"{100 * line['score']:.0f}"
    kept = line.get("kept_share")
    parts = {
        "Prediction": line.get("prediction", line.get("error", "")),
        "Expected": ", ".join(map(str, line.get("references", ()))),
        "Score": score,
        "Kept": "" if kept is None else f"{percent(kept)}%",
    }
    cells = "".join(f"<div><dt>{name}</dt><dd>{escape(str(text))}</dd></div>" for name, text in parts.items())
    question = escape(str(line.get("question", "")).strip())
    return f"<li><p><b>{escape(line['task'])}</b> {question}</p><dl>{cells}</dl></li>"
