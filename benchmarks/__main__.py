"""Run every program of this folder, each in a process of its own, and record its section in docs/benchmarks.md.

    python -m benchmarks [--full] [NAME ...]

A program that fails or takes too long loses only its own section; it is named at the end, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
MINUTES = {False: 15, True: 120}  # what one program may take, quick and full, on a busy machine too


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("[!_]*.py"))


def peak(pid: int) -> int:
    """Bytes of the largest resident set so far of a running process, 0 where /proc does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)


def processor() -> float:
    """Seconds of processor time of all programs that have ended, those that they started included."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def attempt(name: str, full: bool) -> str | None:
    """None, or why there is no new section."""
    print(f"\n== {name}", flush=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--record", *(["--full"] if full else [])]
    # one thread: its processor time then is the time, whatever else the machine does
    environment = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"} | os.environ
    start, largest, before = time.monotonic(), 0, processor()
    process = subprocess.Popen(command, cwd=HERE.parent, env=environment)
    while process.poll() is None:
        largest = max(largest, peak(process.pid))
        if time.monotonic() - start > 60 * MINUTES[full]:
            process.kill()
            process.wait()
            return f"cut off after {MINUTES[full]} minutes"
        time.sleep(0.2)
    took = f"{time.monotonic() - start:.0f} s, {processor() - before:.0f} of a processor"
    print(f"== {name}: {took}, at most {largest / 2**30:.1f} GiB", flush=True)
    return f"exit code {process.returncode}" if process.returncode else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(names())}")
    parser.add_argument("--full", action="store_true", help="the large cases too")
    options = parser.parse_args()
    if unknown := sorted(set(options.names) - set(names())):
        parser.error(f"{unknown[0]} is no program of this folder: choose from {', '.join(names())}")
    failed = {name: why for name in options.names or names() if (why := attempt(name, options.full))}
    for name, why in failed.items():
        print(f"{name}: {why}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
