"""Where a run was made: which code, which packages, which machine, and which contents its input files had."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evals.run.conf import ROOT, flatten
from evals.run.records import Provenance

PACKAGES = (
    *("torch", "transformers", "tokenizers", "numpy", "scipy"),
    *("hydra-core", "omegaconf", "safetensors", "triton", "flash-attn"),
)
HASHED_WHOLE = 256 * 2**20
"""Files up to this size are told apart by content, larger ones by size and modification time."""


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


def fingerprint_inputs(config: Mapping[str, Any]) -> dict[str, str]:
    """Path -> fingerprint of every file that the settings name: budget tables, data, the weights in a model folder."""
    prints = {}
    for key, value in flatten(config):
        if not isinstance(value, str) or "\0" in value or len(value) > 4096:
            continue
        path = Path(value)
        if path.is_file():
            prints[value] = fingerprint(path)
        elif key in ("model.path", "allocator.path") and path.is_dir():
            files = [f for f in sorted(path.iterdir()) if f.suffix in (".safetensors", ".npy")]
            prints.update({str(f): fingerprint(f) for f in files})
    return prints


def fingerprint(path: Path) -> str:
    stat = path.stat()
    if stat.st_size > HASHED_WHOLE:
        return f"{stat.st_size} bytes, {stat.st_mtime_ns}"
    return _hash_content(path, stat.st_ino, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_content(path: Path, *_: int) -> str:
    """The runs of a sweep name the same files. A file that changes gets another time, and is read again."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


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
