"""run.py and report.py as processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

Command = Callable[..., int]


def process(*args: str, program: str = "run.py") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HYDRA_FULL_ERROR": "", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, program, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
