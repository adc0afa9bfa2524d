"""The finished runs of a folder, and the names that tables and figures give them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evals.differences import Scores, group_scores
from evals.run.files import read_json, read_settings
from evals.run.folder import name_result_method, read_experiment, read_samples
from evals.stats import mean_interval
from lukv.names import BUDGETS

Result = Mapping[str, Any]
"""The content of a result.json."""

CUT = 200
"""Characters of an older run id that was too long."""


def read_results(runs: Path) -> list[Result]:
    """The result of every finished evaluation in `runs`, sorted by run id, with intervals of today's making and with
    what decides which results stand together."""
    results = [(path.parent, read_json(path)) for path in sorted(runs.glob("*/result.json"))]
    return [
        {**with_intervals(r, folder), **read_experiment(folder), "protocol": read_protocol(folder)}
        for folder, r in results
        if "tasks" in r
    ]


def read_protocol(folder: Path) -> str:
    return name_protocol(read_json(folder / "run.json").get("benchmark", {}))


def with_intervals(r: Result, folder: Path) -> Result:
    """The result with its intervals computed from the samples: what an older version wrote is then as any other.

    Raises ValueError if the samples are not those of the result.
    """
    scores = read_scores(folder)
    if {task: entry["n"] for task, entry in r["tasks"].items()} != {task: len(s) for task, s in scores.items()}:
        raise ValueError(f"{folder}/samples.jsonl has other samples than result.json: remove {folder} and run again")
    values = {task: list(scores[task].values()) for task in r["tasks"]}
    tasks = {task: {**entry, "ci95": list(mean_interval([values[task]]))} for task, entry in r["tasks"].items()}
    return {**r, "tasks": tasks, "ci95": list(mean_interval(list(values.values())))}


def name_protocol(about: Mapping[str, Any]) -> str:
    """How the benchmark asks, from its own description in run.json."""
    if "protocol" in about:
        return str(about["protocol"])
    return "question-aware" if about.get("question_aware") else "question-agnostic"


def read_latencies(runs: Path) -> dict[str, list[Result]]:
    """The rows of all finished job=latency runs: "model, batch, machine" -> the rows that were measured there.

    A row is {label, context_tokens, prefill_s, ttft_s, tpot_s, cache_bytes, peak_bytes}, in seconds and bytes. Every
    run measures the full cache too. Its first row at each length is used.
    """
    groups: dict[str, dict[tuple[str, int], Result]] = {}
    for path in sorted(runs.glob("*/result.json")):
        result = read_json(path)
        if "rows" not in result:
            continue
        config = read_settings(path.parent / "config.yaml")
        device = read_json(path.parent / "run.json")["device"]
        group = groups.setdefault(f"{config['model']['name']}, batch {config['job']['batch']}, {device}", {})
        for row in result["rows"]:
            own = row["method"].split()[0] == config["method"] and config["scorer"]
            parts = result["run_id"].split("__latency")[0].split("__")[1:]  # method, budget, cache_dtype, decoding
            name = " ".join(parts) if own else row["method"]
            group.setdefault((name, row["context_tokens"]), {**row, "label": name})
    return {name: list(rows.values()) for name, rows in groups.items()}


def read_scores(folder: Path) -> Scores:
    """The score of every sample of a finished run. Samples that failed have none and are left out."""
    return group_scores(read_samples(folder / "samples.jsonl"))


def group_by_experiment(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results that may stand in one table: model, prompts, answers, tasks and seed are the same. Experiment's name
    -> results, with this name as their `experiment` and with labels that differ at each budget.

    An older run that does not record its weights and its right answers stands with the newer ones, if these agree.
    """
    alike: dict[tuple[str, ...], dict[str | None, list[Result]]] = {}
    for r in results:
        alike.setdefault((r["asked"], *sorted(r["tasks"])), {}).setdefault(r["known"], []).append(r)
    found = []
    for by_content in alike.values():
        unknown = by_content.pop(None, [])
        if len(by_content) == 1:
            unknown += next(iter(by_content.values()))
            by_content.clear()
        found += [sorted(group, key=lambda r: str(r["run_id"])) for group in (unknown, *by_content.values()) if group]
    names = [next((r for r in group if "label" in r), group[0])["experiment"] for group in found]
    groups: dict[str, list[Result]] = {}
    for name, group in sorted(zip(names, found, strict=True), key=lambda pair: str(pair[0])):
        own = f"{name}__{group[0]['data']}" if names.count(name) > 1 else name
        groups[own] = [{**r, "experiment": own, "label": text} for r, text in zip(group, name_rows(group), strict=True)]
    return groups


def name_rows(group: Sequence[Result]) -> list[str]:
    """The label of each result. Where two of one budget have the same, as with two tables of one name, the hash of the
    settings and contents tells them apart."""
    count = Counter((label(r), budget_label(r)) for r in group)
    return [f"{label(r)} {r['config_hash'][:8]}" if count[label(r), budget_label(r)] > 1 else label(r) for r in group]


def keeps_all(r: Result) -> bool:
    """Whether this is the full cache: nothing was evicted, so there is no budget."""
    return all(r["config"].get(key) is None for key in BUDGETS)


def label(r: Result) -> str:
    """The row's name: the method, and each part and setting that is not its own choice, as in "lukv-snapkv
    scorer.window=16". An older result calls the method otherwise.
    """
    method, *settings = read_label(r)
    return " ".join([name_result_method(r) or method, *settings])


def read_label(r: Result) -> list[str]:
    """The words of a result's own label. The oldest do not have it: then these are what the run id has beyond the
    experiment and the budget. Where the id was cut, its end is no setting."""
    if "label" in r:
        return str(r["label"]).split()
    shared = r["experiment"].split("__")
    _, method, *rest = r["run_id"].split("__")
    own = [part for part in rest if part not in shared]
    if len(r["run_id"]) == CUT:
        own = own[:-1]
    return [method, *(own if keeps_all(r) else own[1:])]  # the first of its own parts is the budget


ALL = "all"
"""The budget of the full cache."""


def budget_label(r: Result) -> str:
    """The budget as the user gave it: "0.2" (the share kept), "128 tokens", "0.2 bytes" (that share of them) or ALL."""
    c = r["config"]
    if c.get("budget_bytes") is not None:
        return f"{c['budget_bytes']:g} bytes"
    if c["budget"] is not None:
        return f"{c['budget']:g}"
    return f"{c['budget_tokens']} tokens" if c["budget_tokens"] else ALL


def title_budget(text: str) -> str:
    """A budget's label as the head of a column: "0.2" is "kept 20%", "0.2 bytes" is "20% of bytes"."""
    number, _, unit = text.partition(" ")
    if unit == "bytes":
        return f"{100 * float(number):g}% of bytes"
    return f"kept {100 * float(number):g}%" if not unit and is_share(number) else text


def is_share(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def sort_key(r: Result) -> tuple[bool, float, float]:
    """Sorts the full cache first, then by budget, and the best first within a budget."""
    c = r["config"]
    return not keeps_all(r), next((c[key] for key in BUDGETS if c.get(key)), 0), -r["score"]
