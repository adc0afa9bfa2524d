"""Where a run was made: which code, which packages, which machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from evals.run.records import Provenance
from lukv.conf import ROOT

PACKAGES = (
    *("torch", "transformers", "tokenizers", "numpy", "scipy"),
    *("hydra-core", "omegaconf", "safetensors", "triton", "flash-attn"),
)


def collect_provenance() -> Provenance:
    """Which code, on what."""
    import torch

    changed = run_git("status", "--porcelain")
    return {
        "git_sha": run_git("rev-parse", "HEAD"),
        "dirty": None if changed is None else bool(changed),
        "versions": {"python": platform.python_version(), **{p: v for p in PACKAGES if (v := find_version(p))}},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else name_processor(),
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "threads": torch.get_num_threads()},
    }


def quote_command() -> str:
    """The command line of this process."""
    return shlex.join(["python", *sys.argv])


def stamp_time() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def find_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def run_git(*args: str) -> str | None:
    """What git says of this repository. None for an installed package, whatever repository it lies in."""
    if not (ROOT / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *args], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def name_processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
