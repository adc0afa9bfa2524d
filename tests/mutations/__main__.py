"""Do the tests see faults? Put those of faults.yaml into a copy of this repository, one at a time, and run the test
that each names.

python -m tests.mutations [WORD ...]     all faults, or those whose line in the list has one of the words

A fault survives if its test passes. Then the test is to be mended. Exit code 1 if one survives, or cannot be tried.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.mutations.faults import Fault, read_faults

ROOT = Path(__file__).resolve().parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "runs", "build", "dist")
CAUGHT, SURVIVED = "caught", "SURVIVED"


def main(words: Sequence[str]) -> int:
    faults = [each for each in read_faults() if not words or any(word in f"{each.file} {each.fault}" for word in words)]
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(ROOT, copy, ignore=LEFT_OUT)
        code, said = run_tests(copy, sorted({each.test for each in faults}))
        if code != 0:  # a test that fails anyway shows nothing
            print(f"{said}\nthe tests do not pass without a fault")
            return 1
        verdicts = []
        for each in faults:
            verdicts.append(judge(copy, each))
            print(f"{verdicts[-1]:9} {each.file}: {each.fault}", flush=True)
    caught = verdicts.count(CAUGHT)
    print(f"{len(faults)} faults, {caught} caught")
    return 0 if caught == len(faults) > 0 else 1


def judge(root: Path, fault: Fault) -> str:
    """Put the fault into the repository at `root`, run its test, and take the fault out."""
    path = root / fault.file
    content = path.read_text(encoding="utf-8")
    try:
        path.write_text(fault.put_into(content), encoding="utf-8")
        code, said = run_tests(root, [fault.test])
    except ValueError as error:
        return f"NOT TRIED ({error})"
    finally:
        path.write_text(content, encoding="utf-8")
    return {0: SURVIVED, 1: CAUGHT}.get(code, f"{said}\nNOT TRIED (pytest ended with {code})")


def run_tests(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest's exit code (0: passed, 1: failed, others: could not run) and the end of what it says.

    Without ../shared, because a clean clone must catch the faults too. With CI set, hypothesis draws the same cases
    every time. Without bytecode: two versions of a file within a second and of one size would be taken for the same.
    """
    options = ["-x", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout", "--timeout", "250"]
    command = [sys.executable, "-B", "-m", "pytest", *options, *tests]
    quick = {"OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # other plugins take longer than the test
    environment = {**os.environ, "CI": "true", "LUKV_NO_SHARED": "1", **quick}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout + done.stderr)[-3000:]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
