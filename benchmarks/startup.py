"""How long the command line takes before, and around, its work: --help, a run of one sample a task, the imports.

Each is a process of its own. What --help may not import is a test (tests/cli/test_names.py); here is what it costs.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks._section import Section, run

ROOT = Path(__file__).resolve().parents[1]
IMPORTS = {
    "hydra": "import hydra",
    "evals.run.cli (what run.py imports)": "import evals.run.cli",
    "torch": "import torch",
    "transformers.AutoModelForCausalLM": "from transformers import AutoModelForCausalLM",
    "transformers.PreTrainedModel (what any model needs)": "from transformers import PreTrainedModel",
    "lukv.model (torch and transformers in it)": "import lukv.model",
    "evals.jobs.evaluate (what a run imports)": "import evals.jobs.evaluate",
}


def cost(*arguments: str) -> tuple[float, float]:
    """Wall and processor seconds of a Python process with these arguments."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(section: Section) -> None:
    section.text("""
        Each line is a process of its own, started again for every measurement: least wall time, median processor time.
        The import lines each begin with an empty interpreter (the first line), whose time is in them. `limit=1`: LU-KV
        at 20% and the full cache on one sample of each of RULER's tasks at 1024 tokens, tables printed.
    """)
    section.head("process", "least wall, s", "processor, s")
    times = 10 if section.full else 3

    def row(name: str, *arguments: str, repeats: int = times) -> None:
        found = [cost(*arguments) for _ in range(repeats)]
        section.row(name, f"{min(w for w, _ in found):.2f}", f"{statistics.median(c for _, c in found):.2f}")

    row("python, nothing imported", "-c", "pass")
    for name, code in IMPORTS.items():
        row(f"import {name}", "-c", code)
    row("`run.py --help`", "run.py", "--help")
    row("`run.py method=snapkv bugdet=0.2` (a wrong name: exit code 2)", "-c", WRONG)
    with tempfile.TemporaryDirectory() as folder:
        done = ["run.py", "limit=1", f"runs={folder}/0"]
        first = ["run.py", "limit=1", "benchmark.tasks=[vt]", "reference=null"]
        row("`run.py limit=1 benchmark.tasks=[vt] reference=null`: one sample", *first, f"runs={folder}/1", repeats=1)
        row("`run.py limit=1`", *done, repeats=1)
        row("the same again: already done", *done)


WRONG = """
import sys
sys.argv = ["run.py", "method=snapkv", "bugdet=0.2"]
import run
try:
    run.run()
except SystemExit as stopped:
    sys.exit(stopped.code != 2)
sys.exit(1)
"""


if __name__ == "__main__":
    run("Start-up", measure)
