"""Compiles _native.cpp for this processor, once, and keeps the library in the user's cache folder.

The library knows nothing of torch or Python. It is not linked with an OpenMP runtime either: it takes the one that
torch has loaded, so that both share their threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).with_name("_native.cpp")
NEEDED = {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC")


def find_obstacle() -> str | None:
    """Why this machine cannot have the library, None if it can."""
    if not sys.platform.startswith("linux") or not find_features() >= NEEDED:
        return "native needs Linux and a processor with AVX-512 (attention=loop runs anywhere)"
    if not locate_library().exists() and find_compiler() is None:
        return "native is compiled on first use and finds no C++ compiler: apt install g++ (attention=loop needs none)"
    return None


@cache
def load() -> ctypes.CDLL:
    """The library, compiled if it is not there yet. Raises RuntimeError in one line, OSError."""
    path = locate_library()
    if not path.exists():
        compile_library(path)
    if path.stat().st_uid != os.getuid():
        raise RuntimeError(f"{path} belongs to somebody else, so it is not loaded")
    return ctypes.CDLL(str(path))


def compile_library(path: Path, flags: tuple[str, ...] = FLAGS) -> None:
    """Write the library to `path`. Processes that do this at the same time do not meet: the last one's stays."""
    compiler = find_compiler()
    assert compiler is not None
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        unlinked, linked = Path(folder, "native.o"), Path(folder, "native.so")
        run_compiler([*compiler, *flags, "-c", str(SOURCE), "-o", str(unlinked)])
        run_compiler([*compiler, "-shared", str(unlinked), "-o", str(linked)])
        linked.replace(path)


def run_compiler(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        first = next((line for line in said if "error" in line), said[0])
        raise RuntimeError(f"{command[0]} could not compile the native kernel: {first.strip()}")


def find_compiler() -> list[str] | None:
    """What CXX says, or g++; None if there is none."""
    names = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    return names if shutil.which(names[0]) else None


def locate_library() -> Path:
    """Its name says what it was made of and for, so that a home folder may be shared by different machines."""
    about = "\n".join([SOURCE.read_text(), *FLAGS, platform.machine(), *sorted(find_features())])
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lukv")
    return folder / f"native-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"


@cache
def find_features() -> frozenset[str]:
    """What the processor can do, as Linux lists it; nothing elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))
