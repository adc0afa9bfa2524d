"""RULER samples a minute on the embedded model: kvpress's own pipeline, one run of ours, a sweep of ours.

The same samples, weights (float32), budget and length of answers. kvpress answers in its own process, one context after
the other, as its pipeline does. Ours is the whole evaluation: making the samples, prefill, eviction, decoding, scoring,
writing every record. Models are loaded, and both sides warmed up, before the clock starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import initialize_config_dir

from benchmarks._kvpress import PYTHON, no_peers
from benchmarks._section import Section, run
from evals.jobs.job import Evaluate
from evals.ruler import Ruler
from evals.run import build
from evals.run.compose import compose_run
from evals.run.settings import Run
from evals.run.sweep import PlannedRun, Sweep
from lukv.budgets.table import BudgetTable
from lukv.conf import CONF

TASKS = ("niah_single_1", "niah_multikey_2", "niah_multivalue_noise", "vt")
SHARE = 0.2
METHODS = {
    "KeyDiffPress": "method=keydiff",
    "SnapKVPress": "method=snapkv scorer=snapkv_kvpress",
    "LUKVPress": "method=lukv",
}
SWEPT = (0.1, 0.2, 0.3, 0.5)
TABLE = CONF.parent / "models" / "tiny" / "tables" / "keydiff.safetensors"


def compose(*overrides: str) -> Run:
    """The run of a command line."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose_run([*overrides, "reference=null"])


def seconds(runs: Sequence[Run]) -> float:
    """Processor seconds of these runs as one command."""
    sweep = Sweep([PlannedRun(one) for one in runs])
    start = time.process_time()
    for one in runs:
        Evaluate(one, sweep).finish()
    return time.process_time() - start


def answers(one: Run) -> dict[str, str]:
    lines = (one.folder / "samples.jsonl").read_text().splitlines()
    return {line["id"]: line["prediction"] for line in map(json.loads, lines)}


def write_samples(path: Path, length: int, limit: int, tasks: Sequence[str], tokenizer: Any) -> int:
    """What kvpress is asked: the samples of the benchmark, as text."""
    rows = [
        {
            "id": s.id,
            "context": s.context,
            "question": s.question,
            "answer_prefix": s.answer_prefix,
            "max_new_tokens": s.max_new_tokens,
        }
        for task in Ruler(length, tasks=tasks).tasks(tokenizer, limit)
        for s in task.samples
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return len(rows)


def pipeline(*arguments: object) -> dict[str, Any]:
    """What _kvpress_pipeline.py measures; nothing without kvpress."""
    if no_peers():
        return {}
    command = [str(PYTHON), "-m", "benchmarks._kvpress_pipeline", *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=CONF.parent, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def rows(section: Section, length: int, limit: int, folder: Path) -> None:
    tasks = f"benchmark.tasks=[{','.join(TASKS)}]"
    shared = [f"benchmark.length={length}", tasks, f"limit={limit}"]
    samples, table = folder / "samples.jsonl", folder / "keydiff.npy"
    n = write_samples(samples, length, limit, TASKS, build.get_model(compose()).tokenizer)
    BudgetTable.load(TABLE).save_npy(table)
    asked = METHODS if section.full else {name: METHODS[name] for name in ("KeyDiffPress", "LUKVPress")}
    theirs = pipeline(CONF.parent / "models" / "tiny", "float32", samples, table, SHARE, *asked)

    def make_run(method: str, name: str, *more: str, budget: float = SHARE) -> Run:
        return compose(*method.split(), f"budget={budget}", f"runs={folder}/{name}", *shared, *more)

    for press, method in asked.items():
        other = theirs.get(press, {})
        rate = 60 * n / other["seconds"] if "seconds" in other else None
        if other:
            cells = (f"{rate:.0f}", "1.0", "") if rate else ("-", "-", "-")
            section.row(f"{length} tokens, kvpress {press}" + ("" if rate else f": {other['error']}"), *cells)

        def row(what: str, runs: Sequence[Run], mine: int = 0, rate: float | None = rate, other: Any = other) -> None:
            ours = 60 * n * len(runs) / seconds(runs)
            said = answers(runs[mine])
            same = sum(said[i] == text for i, text in other.get("answers", {}).items())
            ratio = f"{ours / rate:.1f}" if rate else "-"
            section.row(f"{length} tokens, {what}", f"{ours:.0f}", ratio, f"{same} of {n}" if rate else "-")

        command = f"`{method} budget={SHARE}`"
        row(f"ours {command} batch_size=1", [make_run(method, f"{press}-1", "batch_size=1")])
        row(f"ours {command}", [make_run(method, f"{press}-8")])
        budgets = [make_run(method, f"{press}-swept", budget=b) for b in SWEPT]
        row(f"ours `-m {method} budget={','.join(map(str, SWEPT))}`", budgets, SWEPT.index(SHARE))


def measure(section: Section) -> None:
    torch.set_num_threads(1)
    section.text(f"""
        Tasks {", ".join(TASKS)}; one thread, processor time. A sample is one answer of one method at one budget, and
        the ratio is to kvpress's pipeline (its 0.5.5, one context at a time) with the same scorer at {SHARE:.0%}. Its
        time: tokenizing, prefill, eviction and decoding; ours also making the samples, scoring and writing the records.
        Batches of 8 unless it says otherwise; the sweep shares each context's prefill. *same answers*: predictions
        equal to kvpress's, whose budgets differ from ours by its rounding.
    """)
    if why := no_peers():
        section.text(f"kvpress is not measured: {why}.")
    section.head("context, program", "samples a minute", "of kvpress", "same answers")
    with tempfile.TemporaryDirectory() as folder:
        warm = compose("benchmark.length=1024", f"benchmark.tasks=[{TASKS[0]}]", "limit=2", f"runs={folder}/warm")
        seconds([warm])
        for length, limit in ((1024, 24), (4096, 12)) if section.full else ((1024, 8),):
            (Path(folder) / str(length)).mkdir()
            rows(section, length, limit, Path(folder) / str(length))


if __name__ == "__main__":
    run("Evaluation: RULER samples a minute", measure)
