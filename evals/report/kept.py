"""A view on the page: a context, and which of its tokens each method kept. Of runs made with record_kept=N."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evals.report.runs import budget_label, label


def collect_kept(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The contexts that some runs recorded the kept tokens of: {name, question, references, tokens, runs}.

    rows: results with `samples`, lines of samples.jsonl. A run is {id, name, prediction, score, layers}.
    """
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for row in rows:
        for line in row.get("samples", ()):
            kept = line.get("kept_tokens")
            if kept is None:
                continue
            about = {k: line.get(k) for k in ("question", "references")}
            about |= {"name": f"{row['benchmark']}, {line['id']}", "tokens": kept["tokens"], "runs": []}
            sample = found.setdefault((row["model"], row["experiment"], line["id"], *kept["tokens"]), about)
            name = f"{label(row)}, {budget_label(row)}"
            run = {"id": row["run_id"], "name": name, "layers": kept["layers"]}
            sample["runs"].append(run | {k: line[k] for k in ("prediction", "score")})
    return list(found.values())


def html_kept(rows: Sequence[Mapping[str, Any]]) -> str:
    """The section, which the page's script fills from its data; nothing where no run recorded them."""
    samples = collect_kept(rows)
    if not samples:
        return ""
    return (
        f'<section id="kept" data-samples="{escape(json.dumps(samples, ensure_ascii=False))}"><h2>What was kept '
        "<small>a line a run, from the context's first token to its last; the darker, the more KV heads kept it"
        "</small></h2>"
        '<p><label>Context <select name="sample"></select></label> '
        '<label>Layers <select name="layers"></select></label></p>'
        '<p class="asked"></p><div class="strips"></div><p class="context"></p></section>'
    )
