"""A benchmark of two contexts with two questions each, and what a run of it wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

QUESTIONS = ["Where is the key?", "How often did it rain?"]


def write_benchmark(folder: Path, model: Path, contexts: Sequence[str]) -> list[str]:
    """Write the benchmark, and return what run.py is to be given: no full cache beside it, runs in the same folder."""
    data = folder / "data.jsonl"
    pairs = product(contexts, QUESTIONS)
    lines = [{"id": str(i), "context": c, "question": q, "answers": ["47"]} for i, (c, q) in enumerate(pairs)]
    data.write_text("\n".join(map(json.dumps, lines)))
    asked = ["model=hf", f"model.path={model}", "benchmark=jsonl", f"benchmark.data={data}", f"runs={folder}"]
    return [*asked, "reference=null"]


def samples(folder: Path, pattern: str) -> dict[str, dict[str, Any]]:
    """The lines of the one run whose name fits the pattern, by id."""
    (path,) = folder.glob(f"{pattern}/samples.jsonl")
    return {line["id"]: line for line in map(json.loads, path.read_text().splitlines())}
