"""kvpress in a process of its own: it needs an older transformers, and patches every attention function it finds."""

from __future__ import annotations

import json
import os
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PYTHON = Path(os.environ.get("LUKV_PEERS_PYTHON", ROOT / ".venv-peers" / "bin" / "python"))


@cache
def no_peers() -> str | None:
    """Why kvpress cannot be measured, or None."""
    if not PYTHON.exists():
        return "it is not installed (`bash scripts/peers_venv.sh` makes .venv-peers)"
    done = subprocess.run([PYTHON, "-c", "import kvpress"], capture_output=True, text=True, check=False)
    return f"`import kvpress` fails: {done.stderr.strip().splitlines()[-1]}" if done.returncode else None


def peers(what: str, *arguments: object) -> dict[str, Any] | None:
    """What benchmarks/_kvpress_process.py measures; None without kvpress. Raises RuntimeError where it fails."""
    if no_peers():
        return None
    command = [str(PYTHON), "-m", "benchmarks._kvpress_process", what, *map(str, arguments)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
