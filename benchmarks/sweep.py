"""What a sweep costs: 6 methods x 5 budgets with the prefill shared, every run by itself, and one run alone.

    python benchmarks/sweep.py [--limit 10] [--length 1024]

Processor seconds of `python run.py` as a process (other jobs do not count; one thread), start-up measured apart.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=10, help="samples of each of the three tasks")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a context")
    options = parser.parse_args()
    common = [TASKS, f"limit={options.limit}", f"benchmark.length={options.length}"]
    cases = {  # name: (arguments, runs with their reference)
        "one run and its reference": (ONE, 2),
        "6 methods x 5 budgets, shared": (MANY, 31),
        "6 methods x 5 budgets, each run by itself": ([*MANY, "share=false"], 31),
    }
    print("| command | runs | CPU s | of them start-up | ms a sample and run | to one run |")
    print("|---|--:|--:|--:|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        first = 0.0
        for name, (arguments, runs) in cases.items():
            where = f"runs={folder}/{runs}{'share=false' in arguments}"
            whole = seconds([*arguments, *common, where])
            start = seconds([*arguments, *common, where])  # all is done by now: what is left is start-up
            work = whole - start
            first = first or whole
            each = 1e3 * work / (runs * 3 * options.limit)
            print(f"| {name} | {runs} | {whole:.1f} | {start:.1f} | {each:.1f} | {whole / first:.1f} x |", flush=True)


if __name__ == "__main__":
    main()
