"""What a sweep costs: 6 methods x 5 budgets with the prefill shared, every run by itself, and one run alone.

Processor seconds of `python run.py` as a process (other jobs do not count; one thread), start-up measured apart.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks._section import Section, run

ROOT = Path(__file__).resolve().parents[1]
TASKS = "benchmark.tasks=[niah_single_1,niah_multikey_2,vt]"
ONE = ["method=keydiff", "budget=0.2"]
MANY = ["-m", "method=lukv,keydiff,snapkv,expected_attention,streaming,random", "budget=0.05,0.1,0.2,0.3,0.5"]


def seconds(arguments: list[str]) -> float:
    """Processor seconds of one command."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    alone = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
    start = used()
    command = [sys.executable, "run.py", *arguments]
    subprocess.run(command, cwd=ROOT, env=os.environ | alone, capture_output=True, check=True)
    return used() - start


def measure(section: Section) -> None:
    limit = 40 if section.full else 5
    section.text(f"""
        `python run.py` on the embedded model, three RULER tasks of {limit} samples at 1024 tokens: six methods at five
        budgets and the full cache with every context prefilled once, every run by itself, and one run with its
        reference. Processor seconds of the process, one thread; start-up is that of the same command when all is done.
    """)
    common = [TASKS, f"limit={limit}", "benchmark.length=1024"]
    cases = {  # name: (arguments, runs with their reference)
        "one run and its reference": (ONE, 2),
        "6 methods x 5 budgets, shared": (MANY, 31),
        "6 methods x 5 budgets, each run by itself": ([*MANY, "share_prefill=false"], 31),
    }
    section.head("command", "runs", "CPU s", "of them start-up", "ms a sample and run", "to one run")
    with tempfile.TemporaryDirectory() as folder:
        first = 0.0
        for name, (arguments, runs) in cases.items():
            where = f"runs={folder}/{runs}{'share_prefill=false' in arguments}"
            whole = seconds([*arguments, *common, where])
            start = seconds([*arguments, *common, where])  # all is done by now: what is left is start-up
            first = first or whole
            each = 1e3 * (whole - start) / (runs * 3 * limit)
            section.row(name, runs, f"{whole:.1f}", f"{start:.1f}", f"{each:.1f}", f"{whole / first:.1f} x")


if __name__ == "__main__":
    run("A sweep with one prefill for all its runs", measure)
